//! The corpus of HTTP/2 requests: `tests/corpus/h2.txt` says how it reads.

use sluice_tests::gateway::Gateway;
use sluice_tests::h2_frames::{END_STREAM, Frames, Outcome, frame, headers, kind};
use sluice_tests::recorder::Recorder;
use sluice_tests::wait::{SOON, within};

use super::{Upstream, unescape};
use crate::{WEB, web};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/h2.txt");

/// Fewer means that some were lost.
const AT_LEAST: usize = 90;

#[derive(Debug)]
struct Case {
    name: String,
    answer: String,
    upstream: Upstream,
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    Headers {
        end: bool,
        fields: Vec<(Vec<u8>, Vec<u8>)>,
    },
    Data {
        end: bool,
        data: Vec<u8>,
    },
}

fn good(method: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    [
        (":method", method),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", WEB),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into()
}

fn parse(corpus: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in corpus.lines().filter(|l| !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case {
                name: name.to_owned(),
                answer: String::new(),
                upstream: Upstream::default(),
                steps: Vec::new(),
            });
            continue;
        }
        let Some(case) = cases.last_mut() else {
            assert_eq!(line, "", "a line before the first case");
            continue;
        };
        case.add(line);
    }
    cases
}

impl Case {
    fn add(&mut self, line: &str) {
        if let Some(field) = line.strip_prefix("  ") {
            let Some(Step::Headers { fields, .. }) = self.steps.last_mut() else {
                panic!("a field without HEADERS in {}", self.name);
            };
            match field {
                "{GET}" => fields.extend(good("GET")),
                "{POST}" => fields.extend(good("POST")),
                field => {
                    let (name, value) = field.split_once(" =").expect("name = value");
                    let value = value.strip_prefix(' ').unwrap_or(value);
                    fields.push((unescape(name), unescape(value)));
                }
            }
        } else if let Some(rest) = line.strip_prefix("HEADERS") {
            self.steps.push(Step::Headers {
                end: rest == " end",
                fields: Vec::new(),
            });
        } else if let Some(rest) = line.strip_prefix("DATA ") {
            let (end, text) = rest
                .strip_prefix("end ")
                .map_or((false, rest), |text| (true, text));
            let data = unescape(text);
            self.steps.push(Step::Data { end, data });
        } else if let Some((key, value)) = line.split_once(": ") {
            match key {
                "answer" => value.clone_into(&mut self.answer),
                _ => assert!(self.upstream.set(key, value), "{line} in {}", self.name),
            }
        } else {
            assert_eq!(line, "", "in {}", self.name);
        }
    }

    async fn run(&self, gateway: &Gateway, backend: &Recorder) -> Result<(), String> {
        let what = &*self.name;
        let mut conn = Frames::connect(gateway.addr())
            .await
            .expect("the gateway accepts");
        let mut bytes = Vec::new();
        for step in &self.steps {
            bytes.extend(match step {
                Step::Headers { end, fields } => headers(1, fields, *end),
                Step::Data { end, data } => frame(kind::DATA, if *end { END_STREAM } else { 0 }, 1, data),
            });
        }
        // In one piece, as far as the kernel takes it: what the gateway makes of one frame must not race with
        // the next. It may have been refused before all was sent: the answer counts.
        let _ = conn.send(&bytes).await;
        let outcome = within(what, SOON, conn.outcome(1)).await;
        if outcome.to_string() != self.answer {
            return Err(format!("answered {outcome}"));
        }
        let mut own = 1;
        if !matches!(outcome, Outcome::GoAway(_) | Outcome::Closed) {
            own += 1;
            let sent = conn.send(&headers(3, &good("GET"), true)).await;
            let outcome = within(what, SOON, conn.outcome(3)).await;
            if sent.is_err() || outcome != Outcome::Status(200) {
                return Err(format!("the connection is of no more use: {outcome}"));
            }
        }
        let response = gateway.get(WEB, "/good").await;
        if response.status != 200 {
            return Err(format!("a good request gets {}", response.status));
        }
        self.upstream.judge(what, own, backend).await
    }
}

#[tokio::test]
async fn every_case_gets_its_answer_and_the_backend_only_what_it_should() {
    let cases = parse(&std::fs::read_to_string(CORPUS).expect("the corpus is there"));
    assert!(cases.len() >= AT_LEAST, "only {} cases", cases.len());
    let backend = Recorder::start().await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(why) = case.run(&gateway, &backend).await {
            wrong.push(format!("{}: {why}", case.name));
            backend.take();
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    let panics = [("reason", "panicked")];
    assert_eq!(
        gateway.metric("sluice_connections_closed_total", &panics).await,
        0.0
    );
}
