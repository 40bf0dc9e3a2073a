//! Cold answers: what a client gets while something starts.

use std::path::PathBuf;
use std::time::Duration;

use sluice_config_shape::{
    Choice, DurationRange, Integer, Located, Object, ParseError, Parsed, Record, WithLocation,
};
use sluice_model::{ColdAnswer, ColdStream, StreamFormat, WaitingPage};

use super::names::FILE;

const HOUR: Duration = Duration::from_secs(3600);

/// Any interval between two requests of a browser, as the `Refresh` field has it.
const REFRESH: DurationRange = DurationRange {
    min: Duration::from_secs(1),
    max: HOUR,
    whole_seconds: true,
};

const AFTER: DurationRange = DurationRange {
    min: Duration::ZERO,
    max: HOUR,
    whole_seconds: false,
};

const EVERY: DurationRange = DurationRange {
    min: Duration::from_millis(100),
    max: HOUR,
    whole_seconds: false,
};

/// The keys of each answer.
const PAGE_KEYS: [&str; 4] = ["title", "status", "refresh", "file"];
const STREAM_KEYS: [&str; 3] = ["after", "every", "as"];

/// The kind of a cold answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hold,
    Page,
    Stream,
}

/// A cold answer, as far as it could be decoded.
#[derive(Debug, Clone)]
pub(crate) struct ColdDraft {
    kind: Kind,
    title: Option<String>,
    status: u16,
    refresh: Duration,
    /// The template of the page, which the data plane reads.
    pub(crate) file: Option<Located<PathBuf>>,
    stream: ColdStream,
}

impl ColdDraft {
    /// The answer of a service of this name, which the default title has.
    pub(crate) fn answer(self, service: &str) -> ColdAnswer {
        match self.kind {
            Kind::Hold => ColdAnswer::Hold,
            Kind::Page => ColdAnswer::Page(WaitingPage {
                title: self.title.unwrap_or_else(|| format!("{service} is starting")),
                status: self.status,
                refresh: self.refresh,
                file: self.file.map(|file| file.value),
            }),
            Kind::Stream => ColdAnswer::Stream(self.stream),
        }
    }
}

/// A title: one line that people read.
const TITLE: Parsed<String> = Parsed {
    what: "a title",
    parse: |text, _| match text {
        _ if text.trim().is_empty() => Err(ParseError::new("it is empty")),
        _ if text.len() > 200 => Err(ParseError::new("it is longer than 200 bytes")),
        _ if text.chars().any(char::is_control) => Err(ParseError::new("it holds a control character")),
        _ => Ok(text.to_owned()),
    },
};

pub(super) const COLD: Record<ColdDraft> = Record {
    name: "Cold",
    doc: "The answer while no instance is ready and one starts.",
    decode: |o| {
        let kind = o.or(
            "answer",
            "hold: requests wait. page: browsers get a waiting page, other requests wait. stream: requests wait, and clients that accept the type get signs of life.",
            Choice(&[("hold", Kind::Hold), ("page", Kind::Page), ("stream", Kind::Stream)]),
            Kind::Hold,
        );
        let title = o.optional("title", "Of the page. Default: {service} is starting.", TITLE);
        let status = o.or(
            "status",
            "Of the page, 200 to 599.",
            Integer { min: 200, max: 599 },
            503,
        );
        let refresh = o.or(
            "refresh",
            "How often the browser asks again, in whole seconds.",
            REFRESH,
            Duration::from_secs(2),
        );
        let file = o.optional(
            "file",
            "A page of your own, HTML of up to 64 KiB, relative to this file. {title}, {phase}, {elapsed} and {expected} are replaced.",
            WithLocation(FILE),
        );
        let stream = ColdStream {
            after: o.or(
                "after",
                "How long a request waits before the stream begins.",
                AFTER,
                Duration::from_secs(2),
            ),
            every: o.or(
                "every",
                "The interval between two signs of life.",
                EVERY,
                Duration::from_secs(10),
            ),
            format: o.or(
                "as",
                "sse: comments, for clients that accept text/event-stream. json: whitespace, for clients that accept application/json.",
                Choice(&[("sse", StreamFormat::ServerSentEvents), ("json", StreamFormat::Json)]),
                StreamFormat::ServerSentEvents,
            ),
        };
        let sound = !o.has("answer") || o.value("answer").is_some_and(|value| value.scalar().is_some());
        if sound {
            reject_foreign_keys(o, kind);
        }
        Some(ColdDraft {
            kind,
            title,
            status: u16::try_from(status).unwrap_or(503),
            refresh,
            file,
            stream,
        })
    },
};

/// Reports keys that belong to another answer: without the report they would silently do nothing.
fn reject_foreign_keys(o: &mut Object<'_>, kind: Kind) {
    for (keys, of, name) in [
        (&PAGE_KEYS[..], Kind::Page, "page"),
        (&STREAM_KEYS[..], Kind::Stream, "stream"),
    ] {
        if kind == of {
            continue;
        }
        for key in keys {
            if let Some(node) = o.key(key) {
                let diagnostic = node.error(format!("'{key}' goes with answer: {name} only"));
                o.cx.report(diagnostic.hint(format!("write answer: {name}, or leave '{key}' out")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sluice_model::{NoWake, Service};

    use super::*;
    use crate::compile::load;
    use crate::config::SourceFile;

    fn compiled(keys: &str) -> Result<Arc<Service>, String> {
        let text = format!(
            "services:\n- name: shop\n  endpoints: ['127.0.0.1:1']\n  {}\n",
            keys.replace('\n', "\n  ")
        );
        let file = SourceFile {
            path: "/etc/sluice/f.yaml".into(),
            text,
        };
        let loaded = load(&[file], &|_| None).map_err(|mistakes| mistakes.to_string())?;
        Ok(Arc::clone(loaded.snapshot.services()[0]))
    }

    fn answer(keys: &str) -> ColdAnswer {
        let service = compiled(keys).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        ColdAnswer::clone(service.cold.as_ref().expect("is configured"))
    }

    #[test]
    fn the_defaults_are_the_contracts() {
        assert_eq!(compiled("").expect("is sound").cold, None);
        assert_eq!(answer("cold: {}"), ColdAnswer::Hold);
        let page = WaitingPage {
            title: "shop is starting".to_owned(),
            status: 503,
            refresh: Duration::from_secs(2),
            file: None,
        };
        assert_eq!(answer("cold: {answer: page}"), ColdAnswer::Page(page.clone()));
        let own = "cold: {answer: page, title: Soon, status: 200, refresh: 5s, file: wait.html}";
        assert_eq!(
            answer(own),
            ColdAnswer::Page(WaitingPage {
                title: "Soon".to_owned(),
                status: 200,
                refresh: Duration::from_secs(5),
                file: Some("/etc/sluice/wait.html".into()),
            })
        );
        let stream = ColdStream {
            after: Duration::from_secs(2),
            every: Duration::from_secs(10),
            format: StreamFormat::ServerSentEvents,
        };
        assert_eq!(answer("cold: {answer: stream}"), ColdAnswer::Stream(stream));
        let json = ColdStream {
            after: Duration::ZERO,
            every: Duration::from_millis(500),
            format: StreamFormat::Json,
        };
        assert_eq!(
            answer("cold: {answer: stream, after: 0s, every: 500ms, as: json}"),
            ColdAnswer::Stream(json)
        );
        let routed = compiled(
            "cold: {answer: page}\nroutes: [{match: {path: {prefix: /api}}, cold: {answer: hold}}, {}]",
        );
        let routed = routed.expect("is sound");
        assert_eq!(routed.main.routes[0].cold.as_deref(), Some(&ColdAnswer::Hold));
        assert_eq!(routed.main.routes[1].cold, None, "the service's");
        assert_eq!(routed.pages().collect::<Vec<_>>(), [&page]);
    }

    #[test]
    fn mistakes_are_told_with_what_to_do() {
        for (keys, message) in [
            ("cold: {answer: pgae}", "did you mean 'page'"),
            ("cold: {anwser: page}", "did you mean 'answer'"),
            ("cold: {title: x}", "'title' goes with answer: page only"),
            (
                "cold: {answer: page, every: 2s}",
                "'every' goes with answer: stream only",
            ),
            (
                "cold: {answer: stream, refresh: 2s}",
                "'refresh' goes with answer: page only",
            ),
            ("cold: {answer: page, refresh: 1500ms}", "whole number of seconds"),
            ("cold: {answer: page, refresh: 0s}", "between 1s and 1h"),
            ("cold: {answer: page, status: 101}", "between 200 and 599"),
            ("cold: {answer: page, title: ''}", "it is empty"),
            ("cold: {answer: stream, every: 1ms}", "between 100ms and 1h"),
            ("cold: {answer: stream, as: xml}", "sse"),
            ("noWake: []", "the list is empty"),
            ("noWake: [{}]", "would match every request"),
            ("noWake: [{userAgents: []}]", "the list is empty"),
            ("noWake: [{userAgent: ['*bot*']}]", "did you mean 'userAgents'"),
            ("noWake: [{userAgents: ['']}]", "it is empty"),
            ("noWake: [{paths: [favicon.ico]}]", "write /favicon.ico"),
            ("noWake: [{paths: ['/a?b']}]", "no query"),
            ("noWake: [{methods: [head]}]", "write HEAD"),
            ("noWake: [{clients: [localhost]}]", "10.0.0.0/8"),
        ] {
            let mistakes = compiled(keys).expect_err(keys);
            assert!(mistakes.contains(message), "{keys}: {mistakes}");
        }
        let many: Vec<String> = (0..101).map(|n| format!("'/{n}'")).collect();
        let mistakes = compiled(&format!("noWake: [{{paths: [{}]}}]", many.join(","))).expect_err("too many");
        assert!(mistakes.contains("101 elements are more than 100"), "{mistakes}");
    }

    #[test]
    fn no_wake_is_a_list_of_rules() {
        let text = "noWake:\n  - {userAgents: [\"kube-probe/*\", \"*bot*\"]}\n  - {paths: [/favicon.ico], methods: [HEAD]}\n  - {clients: [10.0.0.0/8]}";
        let service = compiled(text).expect("is sound");
        let NoWake { rules } = &**service.no_wake.as_ref().expect("is configured");
        let sizes = rules.iter().map(|r| {
            (
                r.user_agents.len(),
                r.paths.len(),
                r.methods.len(),
                r.clients.len(),
            )
        });
        assert_eq!(
            sizes.collect::<Vec<_>>(),
            [(2, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 1)]
        );
    }
}
