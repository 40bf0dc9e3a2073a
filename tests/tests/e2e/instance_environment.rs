//! The environment of an instance: limits, umask and signals that the gateway was started with (execve(2)), texts as
//! configured, and nothing that was meant for the gateway alone.

use std::path::Path;
use std::process::{Command, Stdio};

use sluice_tests::cli::sluice_in;
use sluice_tests::gateway::{Gateway, with_defaults};
use sluice_tests::wait::{SOON, wait_for};

use crate::WEB;
use crate::cold_start::{exec_echo, shell_service};

/// A script that records its environment to files, and then serves.
fn witness(dir: &Path) -> String {
    let to = |name: &str| dir.join(name).display().to_string();
    let script = format!(
        "ulimit -Sn > {}; ulimit -Hn > {}; umask > {}; cat /proc/self/oom_score_adj > {}; grep ^Sig /proc/self/status > {}; \
         env > {}; ls -l /proc/self/fd > {}; {}",
        to("soft"),
        to("hard"),
        to("umask"),
        to("oom"),
        to("signals"),
        to("env"),
        to("fds"),
        exec_echo("hello")
    );
    shell_service(&script, "")
}

fn noted(dir: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(dir.join(name));
    text.unwrap_or_else(|e| panic!("{name}: {e}")).trim().to_owned()
}

async fn serves(gateway: &Gateway) {
    let answer = gateway.get(WEB, "/").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn limits_mask_and_signals_are_those_that_the_gateway_was_started_with() {
    let notes = tempfile::tempdir().unwrap();
    let gateway = Gateway::builder(&witness(notes.path()))
        .first("ulimit -Sn 300")
        .first("umask 027")
        .env("NOTIFY_SOCKET", "@nobody-listens-here")
        .env("WATCHDOG_USEC", "1000000")
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", "1")
        .env("MEANT_FOR_ALL", "1")
        .start()
        .await;
    serves(&gateway).await;
    let noted = |name| noted(notes.path(), name);
    assert_eq!(noted("soft"), "300");
    let own = std::fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).unwrap();
    let own = own
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let own: Vec<&str> = own.split_whitespace().skip(3).collect();
    assert_eq!(own[0], own[1], "the gateway's own is raised");
    assert_eq!(noted("hard"), own[1]);
    assert_eq!(noted("umask").trim_start_matches('0'), "27");
    for line in noted("signals").lines() {
        let (name, mask) = line.split_once(':').unwrap();
        if ["SigBlk", "SigIgn"].contains(&name) {
            // Signals 32 and 33 are the C library's own, which posix_spawn(3) ignores.
            let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
            assert_eq!(mask & 0x7fff_ffff, 0, "{line}");
        }
    }
    let env = noted("env");
    assert!(env.contains("MEANT_FOR_ALL=1"), "{env}");
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"] {
        assert!(!env.contains(name), "{name} in {env}");
    }
    // No listener, client or supervisor socket; descriptors that the gateway itself inherited stay open in instances.
    let fds = noted("fds");
    assert!(!fds.contains("socket:"), "{fds}");
}

/// The process that takes over was started with the limit that its predecessor had raised.
#[tokio::test]
async fn the_limit_survives_an_upgrade() {
    let notes = tempfile::tempdir().unwrap();
    let gateway = Gateway::builder(&witness(notes.path()))
        .first("ulimit -Sn 300")
        .start()
        .await;
    gateway.upgraded().await;
    gateway.upgraded().await;
    serves(&gateway).await;
    assert_eq!(noted(notes.path(), "soft"), "300");
    let env = noted(notes.path(), "env");
    assert!(
        !env.contains("SLUICE_UPGRADE_FROM") && !env.contains("SLUICE_STARTED"),
        "{env}"
    );
}

/// A gateway that is protected from the OOM killer (proc_pid_oom_score_adj(5)) does not protect its instances.
#[tokio::test]
async fn protection_from_the_out_of_memory_killer_is_not_passed_on() {
    let line = "echo -500 > /proc/$$/oom_score_adj";
    for (own, passed_on) in [("300", "300"), ("-500", "0")] {
        let line = line.replace("-500", own);
        let tried = Command::new("sh")
            .args(["-c", &line])
            .stderr(Stdio::null())
            .status();
        if !tried.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: an oom_score_adj of {own} needs CAP_SYS_RESOURCE");
            continue;
        }
        let notes = tempfile::tempdir().unwrap();
        let gateway = Gateway::builder(&witness(notes.path()))
            .first(&line)
            .start()
            .await;
        serves(&gateway).await;
        let gateway_has = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", gateway.pid()));
        assert_eq!(gateway_has.unwrap().trim(), own);
        let env = noted(notes.path(), "env");
        let port = env.lines().find_map(|line| line.strip_prefix("PORT=")).unwrap();
        // The shell may have read the file before the value was set.
        let pids = sluice_tests::process::with_marker(&format!("--port\0{port}\0--message"));
        assert!(!pids.is_empty());
        for pid in pids {
            let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
            assert_eq!(score.trim(), passed_on);
        }
    }
}

/// Kubernetes: "Double $$ are reduced to a single $, which allows for escaping the $(VAR_NAME) syntax".
#[tokio::test]
async fn what_is_escaped_reaches_the_instance_through_both_expansions() {
    let notes = tempfile::tempdir().unwrap();
    let out = notes.path().join("args");
    let script = format!(
        "printf \"%s\\\\n\" \"$@\" \"$MINE\" \"$THEIRS\" > {}; {}",
        out.display(),
        exec_echo("hello")
    );
    let config = format!(
        r#"services:
  - name: web
    revisions:
      - name: web-a
        process:
          command:
            - sh
            - -c
            - '{script}'
            - sh
            - $$(PORT)
            - $(PORT)
            - $${{HOME}}
            - ${{SECRET}}
            - ${{SLUICE_UNSET:-$(K_REVISION)}}
            - x$$$$y
            - $(OTHER)
          env: {{MINE: "$$(K_SERVICE)", THEIRS: "${{SECRET}}"}}
"#
    );
    let gateway = Gateway::builder(&config)
        .env("SECRET", "p$$w$(PORT)")
        .start()
        .await;
    serves(&gateway).await;
    let said = noted(notes.path(), "args");
    let said: Vec<&str> = said.lines().collect();
    let port = said[1];
    assert!(port.parse::<u16>().is_ok(), "{said:?}");
    let want = [
        "$(PORT)",
        port,
        "${HOME}",
        "p$$w$(PORT)",
        "web-a",
        "x$$y",
        "$(OTHER)",
        "$(K_SERVICE)",
        "p$$w$(PORT)",
    ];
    assert_eq!(said, want);
}

/// A directory's name is not a text of the config: no substitution in it.
#[tokio::test]
async fn a_directory_with_dollars_is_left_alone() {
    use std::os::unix::fs::PermissionsExt;

    let notes = tempfile::tempdir().unwrap();
    let dir = notes.path().join("a$$b$(PORT)");
    std::fs::create_dir(&dir).unwrap();
    let program = dir.join("run");
    std::fs::write(
        &program,
        format!("#!/bin/sh\n{}\n", exec_echo("here").replace("$(PORT)", "$PORT")),
    )
    .unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let config = "processes: {ports: 29900-29949, max: 4}\nservices:\n  - name: web\n    process: {command: [./run]}\n";
    std::fs::write(dir.join("sluice.yaml"), with_defaults(config)).unwrap();
    let gateway = Gateway::builder("")
        .source(&dir.join("sluice.yaml"))
        .start()
        .await;
    serves(&gateway).await;
}

#[tokio::test]
async fn the_gateways_own_port_in_a_command_is_warned_of() {
    let config = |word: &str| {
        format!(
            "services:\n  - name: web\n    process: {{command: [x, \"{word}\"], env: {{A: \"{word}\"}}}}\n"
        )
    };
    for (name, word) in [
        ("PORT", "${PORT}"),
        ("K_SERVICE", "-p ${K_SERVICE:-1}"),
        ("K_REVISION", "${A:-${K_REVISION}}"),
    ] {
        let gateway = Gateway::builder(&config(word)).env(name, "9").start().await;
        let hint = format!("write $({name}) for the instance's own");
        wait_for("both are warned of", SOON, async || {
            let said = gateway.stderr().concat();
            (said.matches(&hint).count() == 2).then_some(())
        })
        .await;
    }
    let gateway = Gateway::builder(&config("$(PORT) $${PORT} $$(PORT)"))
        .env("PORT", "9")
        .start()
        .await;
    assert!(!gateway.stderr().concat().contains("instance's own"));
    // An unset variable is a mistake, with the same escape in the hint.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("sluice.yaml"), config("${K_REVISION}")).unwrap();
    let done = sluice_in(dir.path(), &["check"]).await;
    assert_eq!(done.code, Some(1));
    assert!(done.all().contains("write $(K_REVISION)"), "{}", done.all());
}
