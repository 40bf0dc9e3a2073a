use http_body_util::BodyExt;
use serde_json::json;

use super::super::fixture::{FakeGateway, revision};
use super::super::graceful_shutdown::{GracefulShutdown, graceful_shutdown};
use super::*;

struct Following {
    feed: Feed,
    state: Arc<FakeGateway>,
    shutdown: GracefulShutdown,
    request: ShutdownRequest,
    task: tokio::task::JoinHandle<()>,
}

fn start() -> Following {
    let state = Arc::new(FakeGateway::new());
    let (feed, task) = feed(Arc::clone(&state) as _);
    let (shutdown, signal) = graceful_shutdown();
    Following {
        feed,
        state,
        shutdown,
        request: signal.split().0,
        task: tokio::spawn(task.run()),
    }
}

impl Following {
    fn follow(&self) -> Option<EventStream> {
        self.feed.follow(self.request.clone())
    }
}

/// The next event that is no comment: its name and data.
async fn next(stream: &mut EventStream) -> Option<(String, Value)> {
    loop {
        let frame = stream.frame().await?.unwrap().into_data().unwrap();
        let text = std::str::from_utf8(&frame).unwrap().to_owned();
        let text = text
            .strip_suffix("\n\n")
            .expect("an event ends with an empty line");
        if text.starts_with(':') {
            continue;
        }
        let (name, data) = text.split_once('\n').unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        let data = data.strip_prefix("data: ").expect("one line of data");
        return Some((name, serde_json::from_str(data).unwrap()));
    }
}

#[tokio::test]
async fn a_snapshot_comes_first_and_then_what_changed() {
    let following = start();
    let mut stream = following.follow().unwrap();
    let (name, snapshot) = next(&mut stream).await.unwrap();
    assert_eq!(name, "snapshot");
    assert_eq!(snapshot["revisions"]["default/greeter-v1"]["in_flight"], 7);
    assert_eq!(snapshot["decisions"], json!([]));
    following
        .state
        .decisions
        .add(UNIX_EPOCH, &revision("greeter-v1"), "1 → 2: <img src=x>");
    following.state.drain();
    let (mut decided, mut draining) = (false, false);
    while !(decided && draining) {
        let (name, change) = next(&mut stream).await.unwrap();
        assert_eq!(name, "change");
        if let Some(decision) = change["decisions"].get(0) {
            assert_eq!(
                (&decision["number"], &decision["text"]),
                (&json!(1), &json!("1 → 2: <img src=x>"))
            );
            assert!(!decided, "told once");
            decided = true;
        }
        draining |= change["gateway"]["notReady"] == "draining";
    }
    // A later follower gets what is known by now, in the snapshot.
    let (_, snapshot) = next(&mut following.follow().unwrap()).await.unwrap();
    assert_eq!(snapshot["decisions"][0]["number"], 1);
}

#[tokio::test]
async fn followers_are_bounded_and_make_room_when_they_go() {
    let following = start();
    let mut streams: Vec<_> = (0..MAX_FOLLOWERS).map(|_| following.follow().unwrap()).collect();
    for stream in &mut streams {
        assert_eq!(next(stream).await.unwrap().0, "snapshot");
    }
    assert!(following.follow().is_none(), "one too many");
    streams.pop();
    while following.follow().is_none() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_ends_when_the_server_shuts_down() {
    let mut following = start();
    let mut stream = following.follow().unwrap();
    assert_eq!(next(&mut stream).await.unwrap().0, "snapshot");
    following.shutdown.stop_accepting().await;
    while next(&mut stream).await.is_some() {}
}

#[tokio::test]
async fn a_slow_follower_gets_a_snapshot_in_place_of_what_it_missed() {
    let (orders, mut ordered) = mpsc::channel::<Order>(1);
    let (changes, _) = broadcast::channel(BEHIND);
    let (sender, mut events) = mpsc::channel(1);
    let (_shutdown, signal) = graceful_shutdown();
    let places = Arc::new(Semaphore::new(1));
    let place = Arc::clone(&places).try_acquire_owned().unwrap();
    let following = tokio::spawn(follow(orders, sender, signal.split().0, place));
    let answer = ordered.recv().await.unwrap();
    answer
        .send((Bytes::from_static(b"first"), changes.subscribe()))
        .unwrap();
    assert_eq!(events.recv().await.unwrap(), "first");
    for n in 0..100 * BEHIND {
        changes.send(Bytes::from(n.to_string())).unwrap();
    }
    // What it holds is bounded: an event in the channel, one in its hand, and then it asks again.
    let mut told = 0;
    let answer = loop {
        tokio::select! {
            answer = ordered.recv() => break answer.unwrap(),
            _ = events.recv() => told += 1,
        }
    };
    assert!(told <= 2, "{told}");
    answer
        .send((Bytes::from_static(b"second"), changes.subscribe()))
        .unwrap();
    while events.recv().await.unwrap() != "second" {}
    drop(events);
    following.await.unwrap();
    assert_eq!(places.available_permits(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_does_not_read_is_dropped() {
    let (orders, mut ordered) = mpsc::channel::<Order>(1);
    let (changes, _) = broadcast::channel(BEHIND);
    let (sender, mut events) = mpsc::channel(1);
    let (_shutdown, signal) = graceful_shutdown();
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let following = tokio::spawn(follow(orders, sender, signal.split().0, place));
    let answer = ordered.recv().await.unwrap();
    answer
        .send((Bytes::from_static(b"first"), changes.subscribe()))
        .unwrap();
    // Nobody takes the first event out of the channel, and so no second one fits.
    changes.send(Bytes::from_static(b"second")).unwrap();
    following.await.unwrap();
    assert_eq!(events.recv().await.unwrap(), "first");
    assert!(events.recv().await.is_none(), "the stream has ended");
}

#[tokio::test(start_paused = true)]
async fn silence_is_broken_by_comments() {
    let (orders, mut ordered) = mpsc::channel::<Order>(1);
    let (changes, _) = broadcast::channel::<Bytes>(BEHIND);
    let (sender, mut events) = mpsc::channel(1);
    let (_shutdown, signal) = graceful_shutdown();
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let _following = tokio::spawn(follow(orders, sender, signal.split().0, place));
    let answer = ordered.recv().await.unwrap();
    answer
        .send((Bytes::from_static(b"first"), changes.subscribe()))
        .unwrap();
    assert_eq!(events.recv().await.unwrap(), "first");
    assert!(events.recv().await.unwrap().starts_with(b":"));
}

#[tokio::test]
async fn an_hour_is_sampled_whether_somebody_follows_or_not() {
    let following = start();
    while following.feed.history.lock().last().is_none() {
        tokio::task::yield_now().await;
    }
    let hour = following.feed.hour(None).unwrap();
    assert_eq!(hour["in_flight"][359], 7);
    assert!(
        following.feed.hour(Some(&revision("greeter-v1"))).is_none(),
        "no request yet"
    );
    following.task.abort();
}

#[test]
fn rates_are_differences_by_time() {
    let id = |name| Some(revision(name));
    let before = [(id("a"), 10, 1), (id("gone"), 5, 0)];
    let now = [(id("a"), 30, 2), (None, 4, 0), (id("idle"), 0, 0)];
    let rates = rates(&before, &now, Duration::from_secs(2)).unwrap();
    assert_eq!(rates.len(), 2);
    assert_eq!((rates[&id("a")], rates[&None]), ((10.0, 0.5), (2.0, 0.0)));
    assert!(super::rates(&before, &now, Duration::ZERO).is_none());
}
