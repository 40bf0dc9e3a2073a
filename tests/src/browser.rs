//! Chromium without a window, driven by the Chrome DevTools Protocol.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::wait::{SOON, wait_for, within};

/// Debian's Chromium, or `SLUICE_CHROMIUM`; prints one line where there is none.
///
/// # Panics
/// When `SLUICE_REQUIRE_CHROMIUM` is set and there is none.
pub fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("SLUICE_CHROMIUM").map(PathBuf::from);
    let found = named.unwrap_or_else(|| "/usr/bin/chromium".into());
    if found.is_file() {
        return Some(found);
    }
    assert!(
        std::env::var_os("SLUICE_REQUIRE_CHROMIUM").is_none(),
        "Chromium is required here: apt-get install chromium"
    );
    eprintln!(
        "SKIPPED: no {} (Debian: apt-get install chromium)",
        found.display()
    );
    None
}

/// A browser with one page; it ends with this value.
#[derive(Debug)]
pub struct Browser {
    _process: Child,
    _profile: TempDir,
    socket: WebSocketStream<TcpStream>,
    session: Option<String>,
    calls: u64,
    /// What the page did, as the protocol tells it: requests, messages of its console, exceptions, dialogs.
    pub events: Vec<Value>,
}

impl Browser {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(chromium: &Path) -> Self {
        let profile = TempDir::new().expect("a temporary directory");
        let mut process = Command::new(chromium)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--no-proxy-server",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-dev-shm-usage",
            ])
            .args(["--hide-scrollbars", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Chromium starts");
        let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let url = within("Chromium says where it listens", SOON, async {
            while let Some(line) = lines.next_line().await.expect("text") {
                if let Some(url) = line.strip_prefix("DevTools listening on ") {
                    return url.to_owned();
                }
            }
            panic!("Chromium ended");
        })
        .await;
        // Nothing else is read of it, and it must not stop for that.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let large = WebSocketConfig::default()
            .max_message_size(None)
            .max_frame_size(None);
        let address = url.split('/').nth(2).expect("ws://address/…");
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (socket, _) = client_async_with_config(&url, stream, Some(large))
            .await
            .expect("a WebSocket");
        let mut browser = Self {
            _process: process,
            _profile: profile,
            socket,
            session: None,
            calls: 0,
            events: Vec::new(),
        };
        let target = browser
            .call("Target.createTarget", json!({"url": "about:blank"}))
            .await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = attached["sessionId"].as_str().map(ToOwned::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser
    }

    /// Calls a method of the protocol.
    ///
    /// # Panics
    /// When it fails.
    pub async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.calls += 1;
        let mut call = json!({"id": self.calls, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            call["sessionId"] = json!(session);
        }
        let sent = self.socket.send(Message::text(call.to_string())).await;
        sent.expect("Chromium is there");
        let id = self.calls;
        within(&format!("Chromium answers {method}"), SOON, async {
            loop {
                let message = self
                    .socket
                    .next()
                    .await
                    .expect("Chromium is there")
                    .expect("a message");
                let Ok(text) = message.to_text() else { continue };
                let mut said: Value = serde_json::from_str(text).unwrap_or_default();
                if said["id"] == id {
                    assert!(said["error"].is_null(), "{method}: {said}");
                    return said["result"].take();
                }
                self.events.push(said);
            }
        })
        .await
    }

    /// Goes to a page.
    ///
    /// # Panics
    /// When there is none.
    pub async fn open(&mut self, url: &str) {
        let went = self.call("Page.navigate", json!({"url": url})).await;
        assert!(went["errorText"].is_null(), "{url}: {went}");
        self.wait("document.readyState === 'complete'").await;
    }

    /// The value of an expression in the page.
    ///
    /// # Panics
    /// When it throws.
    pub async fn eval(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut done = self.call("Runtime.evaluate", parameters).await;
        assert!(done["exceptionDetails"].is_null(), "{expression}: {done}");
        done["result"]["value"].take()
    }

    /// Waits until an expression is true.
    ///
    /// # Panics
    /// When it is not soon.
    pub async fn wait(&mut self, expression: &str) {
        let cell = tokio::sync::Mutex::new(self);
        wait_for(expression, SOON, async || {
            let holds = cell.lock().await.eval(expression).await;
            (holds == true).then_some(())
        })
        .await;
    }

    /// Presses a key.
    pub async fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "ArrowLeft" => 37,
            "ArrowRight" => 39,
            _ => 0,
        };
        let mut down = json!({"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code});
        if key == "Enter" {
            down["text"] = json!("\r");
        }
        self.call("Input.dispatchKeyEvent", down).await;
        let up = json!({"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": code});
        self.call("Input.dispatchKeyEvent", up).await;
    }

    /// Types text into what has the focus.
    pub async fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Sets the size of the window in CSS pixels, and whether it is a phone's.
    pub async fn resize(&mut self, width: u32, height: u32, phone: bool) {
        let scale = if phone { 2 } else { 1 };
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Prefers `light` or `dark`.
    pub async fn prefer(&mut self, scheme: &str) {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media).await;
    }

    /// Events of this method.
    pub fn told(&self, method: &str) -> Vec<&Value> {
        let told = self.events.iter().filter(|event| event["method"] == method);
        told.map(|event| &event["params"]).collect()
    }
}
