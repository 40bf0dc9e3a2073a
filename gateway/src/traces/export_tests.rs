use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::Counter;
use parking_lot::Mutex;

use super::*;
use crate::traces::TraceEnvironment;

/// What the collector does with a POST.
enum Answer {
    Takes,
    Rejects(u64),
    Fails { retry: bool, after: Option<u64> },
    Hangs,
}

const BUSY: Answer = Answer::Fails {
    retry: true,
    after: None,
};

/// When a POST came, in milliseconds since the test began, and how many bytes of spans it had.
type Posts = Arc<Mutex<Vec<(u128, usize)>>>;

/// A collector by script; at its end it takes everything.
struct Script {
    answers: VecDeque<Answer>,
    began: Instant,
    posts: Posts,
}

impl Post for Script {
    fn encoded(&self, body: Vec<u8>) -> Bytes {
        Bytes::from(body)
    }

    async fn post(&mut self, body: Bytes) -> Result<PartialSuccess, Failure> {
        let spans = body.iter().filter(|&&byte| byte == SPAN).count();
        self.posts.lock().push((self.began.elapsed().as_millis(), spans));
        let failure = |retry, after: Option<u64>| Failure {
            why: "no".to_owned(),
            retry,
            after: after.map(Duration::from_secs),
        };
        match self.answers.pop_front().unwrap_or(Answer::Takes) {
            Answer::Takes => Ok(PartialSuccess::default()),
            Answer::Rejects(rejected) => Ok(PartialSuccess {
                rejected,
                why: String::new(),
            }),
            Answer::Fails { retry, after } => Err(failure(retry, after)),
            Answer::Hangs => std::future::pending().await,
        }
    }
}

/// A byte that nothing else of a POST has.
const SPAN: u8 = 0xf5;

struct Bench {
    queue: Arc<SpanQueue>,
    handle: ExporterHandle,
    posts: Posts,
    dropped: Arc<AtomicU64>,
}

impl Bench {
    /// Batches of two spans, and the default times.
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let variable = |name: &str| (name == "OTEL_TRACES_EXPORTER").then(|| "otlp".to_owned());
        let settings = TraceEnvironment::read(variable).settings.unwrap();
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Counter::from_arc(Arc::clone(&dropped));
        let queue = Arc::new(SpanQueue::new(8, 2, counter));
        let posts = Posts::default();
        let script = Script {
            answers: answers.into_iter().collect(),
            began: Instant::now(),
            posts: Arc::clone(&posts),
        };
        let exporter = Delivery::new(script, &settings, Arc::clone(&queue), || 1.0);
        Self {
            handle: exporter.spawn(&Handle::current()),
            queue,
            posts,
            dropped,
        }
    }

    fn push(&self, traces: usize) {
        for _ in 0..traces {
            self.queue.push(&[SPAN], 1);
        }
    }

    /// Lets this much time pass; the clock of these tests stands still otherwise.
    async fn pass(&self, seconds: u64) {
        sleep(Duration::from_secs(seconds)).await;
    }

    fn posts(&self) -> Vec<(u128, usize)> {
        self.posts.lock().clone()
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn full_batches_go_at_once_and_others_after_their_delay() {
    let bench = Bench::new([]);
    bench.push(3);
    bench.pass(1).await;
    assert_eq!(bench.posts(), [(0, 2)]);
    bench.pass(9).await;
    assert_eq!(bench.posts(), [(0, 2), (5_000, 1)]);
    assert_eq!(bench.dropped(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_busy_collector_is_tried_again_until_the_batch_is_too_old() {
    let bench = Bench::new((0..6).map(|_| BUSY));
    bench.push(2);
    bench.pass(60).await;
    // Delays of 1, 2, 4, 8, 8 s; the next one would end after 30 s.
    let times: Vec<_> = bench.posts().into_iter().map(|(at, _)| at).collect();
    assert_eq!(times, [0, 1_000, 3_000, 7_000, 15_000, 23_000]);
    assert_eq!(bench.dropped(), 2);
    bench.push(2);
    bench.pass(1).await;
    assert_eq!(
        (bench.posts().len(), bench.dropped()),
        (7, 2),
        "the next batch has its own time"
    );
}

#[tokio::test(start_paused = true)]
async fn a_collectors_own_delay_is_kept() {
    let after = |after| Answer::Fails {
        retry: true,
        after: Some(after),
    };
    for too_long in [60, u64::MAX] {
        let bench = Bench::new([after(12), after(too_long)]);
        bench.push(2);
        bench.pass(90).await;
        assert_eq!(bench.posts(), [(0, 2), (12_000, 2)]);
        assert_eq!(bench.dropped(), 2, "a minute is more than a batch has");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_not_sent_again() {
    let refused = Answer::Fails {
        retry: false,
        after: None,
    };
    let bench = Bench::new([refused, Answer::Rejects(1), Answer::Rejects(99)]);
    bench.push(6);
    bench.pass(1).await;
    assert_eq!(bench.posts(), [(0, 2), (0, 2), (0, 2)]);
    assert_eq!(bench.dropped(), 2 + 1 + 2);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_hangs_fills_the_queue_and_no_more() {
    let bench = Bench::new((0..3).map(|_| Answer::Hangs));
    bench.push(2);
    bench.pass(1).await;
    bench.push(10);
    assert_eq!(bench.dropped(), 2, "eight wait");
    bench.pass(60).await;
    // Ten seconds for each POST, thirty for the batch; then the others find it well again.
    assert_eq!(
        bench.posts(),
        [
            (0, 2),
            (11_000, 2),
            (23_000, 2),
            (30_000, 2),
            (30_000, 2),
            (30_000, 2),
            (30_000, 2)
        ]
    );
    assert_eq!(bench.dropped(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_end_delivers_what_is_left() {
    let bench = Bench::new([]);
    bench.push(5);
    bench.handle.shutdown(Duration::from_secs(5)).await;
    let posted: usize = bench.posts.lock().iter().map(|(_, spans)| spans).sum();
    assert_eq!(posted, 5);
    bench.queue.push(&[SPAN], 1);
    assert_eq!(
        bench.dropped.load(Ordering::Relaxed),
        1,
        "what comes later is counted"
    );
}

#[tokio::test(start_paused = true)]
async fn at_the_end_nobody_waits_for_a_collector_that_is_gone() {
    let began = Instant::now();
    let bench = Bench::new((0..9).map(|_| BUSY));
    bench.push(2);
    bench.pass(4).await;
    // In the middle of a delay.
    bench.push(3);
    bench.handle.shutdown(Duration::from_secs(5)).await;
    assert_eq!(
        began.elapsed(),
        Duration::from_secs(4),
        "one try for each batch, and no delay"
    );
    assert_eq!(bench.dropped.load(Ordering::Relaxed), 5);

    let began = Instant::now();
    let bench = Bench::new([Answer::Hangs]);
    bench.push(3);
    bench.pass(1).await;
    bench.handle.shutdown(Duration::from_secs(5)).await;
    assert_eq!(began.elapsed(), Duration::from_secs(6));
    assert_eq!(bench.dropped.load(Ordering::Relaxed), 3, "those under way, too");
}
