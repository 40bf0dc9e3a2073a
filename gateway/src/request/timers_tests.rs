use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[derive(Default)]
struct Fuse(AtomicBool, AtomicBool);

impl Breakable for Fuse {
    fn break_now(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_blocked(&self) -> bool {
        self.1.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_breaks_the_upstream_connection_unless_that_is_what_is_slow() {
    let timers = RequestTimers::default();
    timers.expect_body(Pace::new(Duration::from_secs(2), Some(10)));
    assert_eq!(rings(&timers, 10).await, None);
    assert!(!timers.body_late(), "nobody takes it yet");
    let fuse = Arc::new(Fuse::default());
    timers.upstream(Some(fuse.clone()), None, now());
    for _ in 0..2 {
        rings(&timers, 1).await;
        timers.body_moved(now(), 10);
    }
    fuse.1.store(true, Ordering::SeqCst);
    rings(&timers, 9).await;
    assert!(!timers.body_late());
    fuse.1.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        rings(&timers, 1).await;
        timers.body_moved(now(), 1);
    }
    assert!(timers.body_late() && fuse.0.load(Ordering::SeqCst));
    assert_eq!(timers.fired(), None);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_whole_is_not_late() {
    let timers = RequestTimers::default();
    timers.expect_body(Pace::new(Duration::from_secs(2), None));
    timers.upstream(Some(Arc::new(Fuse::default())), None, now());
    timers.body_done();
    rings(&timers, 10).await;
    assert!(!timers.body_late());
}

fn timeouts(total: u64, start: u64, idle: u64) -> RevisionTimeouts {
    let some = |s| (s > 0).then(|| Duration::from_secs(s));
    RevisionTimeouts {
        total: some(total),
        response_start: some(start),
        idle: some(idle),
        max_stream_age: None,
    }
}

async fn rings(timers: &RequestTimers, within: u64) -> Option<Timer> {
    let _ = tokio::time::timeout(Duration::from_secs(within), timers.watch()).await;
    timers.fired()
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[tokio::test(start_paused = true)]
async fn the_start_clock_stops_at_the_head_and_the_total_one_does_not() {
    let timers = RequestTimers::default();
    timers.arm(&timeouts(10, 2, 0), None, now());
    timers.head_received(now());
    assert_eq!(rings(&timers, 5).await, None);
    assert_eq!(rings(&timers, 6).await, Some(Timer::Total));
}

fn old_after(age: u64) -> RevisionTimeouts {
    RevisionTimeouts {
        max_stream_age: Some(Duration::from_secs(age)),
        ..timeouts(0, 0, 0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_too_old_is_asked_to_end_and_broken_off_a_grace_later() {
    let timers = RequestTimers::with_grace(Duration::from_secs(5));
    let fuse = Arc::new(Fuse::default());
    timers.arm(&old_after(2), None, now());
    timers.upstream(Some(fuse.clone()), None, now());
    assert_eq!(rings(&timers, 60).await, None, "it counts from the response head");
    timers.head_received(now());
    assert_eq!(rings(&timers, 3).await, None);
    timers.asked_to_end().await;
    assert_eq!(rings(&timers, 3).await, None);
    assert_eq!(rings(&timers, 2).await, Some(Timer::Age));
    assert!(fuse.0.load(Ordering::SeqCst));
    let again = tokio::time::timeout(Duration::from_secs(9), timers.asked_to_end());
    assert!(again.await.is_err(), "once");
}

#[tokio::test(start_paused = true)]
async fn nothing_to_say_is_no_grace() {
    let timers = RequestTimers::default();
    timers.arm(&old_after(2), None, now());
    timers.upstream(Some(Arc::new(Fuse::default())), None, now());
    timers.head_received(now());
    assert_eq!(rings(&timers, 3).await, Some(Timer::Age));
}

#[tokio::test(start_paused = true)]
async fn who_loses_its_instance_may_get_another() {
    let address = sluice_model::EndpointAddr::Tcp(([127, 0, 0, 1], 9).into());
    let endpoint = || Arc::new(EndpointState::new(address.clone(), None));
    let (first, second) = (endpoint(), endpoint());
    let timers = RequestTimers::with_grace(Duration::from_secs(5));
    let fuse = Arc::new(Fuse::default());
    timers.arm(&timeouts(0, 0, 0), None, now());
    timers.upstream(Some(fuse.clone()), Some(&first), now());
    assert_eq!(rings(&timers, 60).await, None);
    first.end();
    assert_eq!(rings(&timers, 3).await, None);
    assert!(!timers.was_evicted());
    timers.asked_to_end().await;
    assert_eq!(rings(&timers, 3).await, None);
    assert!(timers.was_evicted() && fuse.0.load(Ordering::SeqCst));
    let fuse = Arc::new(Fuse::default());
    timers.upstream(Some(fuse.clone()), Some(&second), now());
    assert_eq!(rings(&timers, 60).await, None);
    assert!(!timers.was_evicted() && !fuse.0.load(Ordering::SeqCst));
    second.end();
    assert_eq!(rings(&timers, 6).await, None);
    assert!(timers.was_evicted() && fuse.0.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_breaks_the_upstream_connection() {
    let timers = RequestTimers::default();
    let fuse = Arc::new(Fuse::default());
    timers.arm(&timeouts(0, 2, 0), None, now());
    timers.upstream(Some(fuse.clone()), None, now());
    assert_eq!(rings(&timers, 3).await, Some(Timer::Start));
    assert!(fuse.0.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn stopped_clocks_do_not_ring() {
    let timers = RequestTimers::default();
    let fuse = Arc::new(Fuse::default());
    timers.arm(&timeouts(2, 2, 2), None, now());
    timers.upstream(Some(fuse.clone()), None, now());
    timers.stop();
    timers.touch(now());
    assert_eq!(rings(&timers, 10).await, None);
    assert!(!fuse.0.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn idle_counts_from_the_last_byte() {
    let timers = RequestTimers::default();
    timers.arm(&timeouts(0, 0, 2), None, now());
    timers.upstream(None, None, now());
    assert_eq!(rings(&timers, 1).await, None);
    timers.touch(now());
    assert_eq!(rings(&timers, 1).await, None);
    assert_eq!(rings(&timers, 2).await, Some(Timer::Idle));
}

#[tokio::test(start_paused = true)]
async fn a_connection_made_after_the_ring_is_broken_at_once() {
    let timers = RequestTimers::default();
    timers.arm(&timeouts(1, 0, 0), Some(Duration::from_secs(2)), now());
    assert_eq!(rings(&timers, 3).await, Some(Timer::Total));
    let fuse = Arc::new(Fuse::default());
    timers.upstream(Some(fuse.clone()), None, now());
    assert!(fuse.0.load(Ordering::SeqCst));
}
