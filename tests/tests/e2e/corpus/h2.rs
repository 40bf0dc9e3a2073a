//! The corpus of malformed HTTP/2 requests; `tests/corpus/h2.txt` describes its format.

use sluice_tests::gateway::Gateway;
use sluice_tests::h2_frames::{END_STREAM, Frames, Outcome, frame, headers, kind};
use sluice_tests::recorder::Recorder;
use sluice_tests::wait::{SOON, within};

use super::{Case, Upstream, good_request, read, unescape, verify};
use crate::{WEB, web};

#[derive(Debug, Default)]
struct Http2Case {
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

impl Case for Http2Case {
    fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn line(&mut self, line: &str) -> bool {
        if let Some(field) = line.strip_prefix("  ") {
            let Some(Step::Headers { fields, .. }) = self.steps.last_mut() else {
                return false;
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
        } else {
            match line.split_once(": ") {
                Some(("answer", answer)) => answer.clone_into(&mut self.answer),
                Some((key, value)) => return self.upstream.set(key, value),
                None => return false,
            }
        }
        true
    }
}

impl Http2Case {
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
        // In one write, as far as the kernel takes it: the reaction to one frame must not race with the next frame. The
        // write may fail because of an early refusal: the answer counts.
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
        good_request(gateway).await?;
        self.upstream.judge(what, own, backend).await
    }
}

#[tokio::test]
async fn every_case_gets_its_answer_and_the_backend_only_what_it_should() {
    let cases = read::<Http2Case>("h2.txt", 90);
    let backend = Recorder::start().await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    verify(&cases, &gateway, async |_, case| {
        // Leftovers of a failed case must not count for the next one.
        case.run(&gateway, &backend)
            .await
            .inspect_err(|_| _ = backend.take())
    })
    .await;
}
