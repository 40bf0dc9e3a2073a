//! Tests of the file source on a real file system: every way to change a file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

struct Watched {
    dir: tempfile::TempDir,
    source: FileSource,
}

impl Watched {
    /// A source of `roots`, relative to a directory with an `a.yaml` whose text is "one".
    fn new(roots: &[&str]) -> Self {
        Self::prepared(roots, |dir| fs::write(dir.join("a.yaml"), "one").unwrap())
    }

    fn prepared(roots: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let roots: Vec<_> = roots.iter().map(|root| dir.path().join(root)).collect();
        let mut source = FileSource::new(&roots);
        assert!(source.watch.is_some(), "this system has inotify");
        assert!(!source.refresh().unwrap().is_empty());
        Self { dir, source }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn texts(&self) -> Vec<String> {
        let files = self.source.files.files();
        files.into_iter().map(|f| f.text).collect()
    }

    /// Refreshes at every change until the texts are these; panics at the deadline.
    #[track_caller]
    fn becomes(&mut self, texts: &[&str]) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let seen = tokio::time::timeout(DEADLINE, async {
                while self.texts() != texts {
                    self.source.changed().await;
                    let _ = self.source.refresh();
                }
            });
            if seen.await.is_err() {
                panic!("{caller}: still {:?}, not {texts:?}", self.texts());
            }
        }
    }

    async fn fails(&mut self) -> Vec<SourceError> {
        let failed = async {
            loop {
                self.source.changed().await;
                if let Err(errors) = self.source.refresh() {
                    return errors;
                }
            }
        };
        tokio::time::timeout(DEADLINE, failed).await.expect("an error")
    }
}

#[tokio::test]
async fn written_in_place() {
    let mut watched = Watched::new(&["a.yaml"]);
    watched.write("a.yaml", "two");
    watched.becomes(&["two"]).await;
    watched.write("a.yaml", "three");
    watched.becomes(&["three"]).await;
}

#[tokio::test]
async fn written_by_half_and_later_whole() {
    use std::io::Write as _;

    let mut watched = Watched::new(&["a.yaml"]);
    let path = watched.path("a.yaml");
    let writer = std::thread::spawn(move || {
        let mut file = fs::File::create(path).unwrap();
        file.write_all(b"half ").unwrap();
        std::thread::sleep(Duration::from_secs(1));
        file.write_all(b"and half").unwrap();
    });
    let mut seen = Vec::new();
    tokio::time::timeout(DEADLINE, async {
        while watched.texts() != ["half and half"] {
            watched.source.changed().await;
            let _ = watched.source.refresh();
            seen.push(watched.texts().concat());
        }
    })
    .await
    .expect("the whole is seen");
    writer.join().unwrap();
    assert!(seen.iter().all(|text| text == "half and half"), "{seen:?}");
}

/// A file that stays open for writing, like a log, is read as it is after the maximum wait.
#[tokio::test]
async fn written_and_never_closed() {
    use std::io::Write as _;

    let mut watched = Watched::new(&["a.yaml"]);
    let mut file = fs::File::create(watched.path("a.yaml")).unwrap();
    file.write_all(b"two").unwrap();
    watched.becomes(&["two"]).await;
    drop(file);
}

#[tokio::test]
async fn saved_by_rename_again_and_again() {
    let mut watched = Watched::new(&["a.yaml"]);
    for text in ["two", "three", "four"] {
        watched.write(".a.yaml.swp", text);
        fs::rename(watched.path(".a.yaml.swp"), watched.path("a.yaml")).unwrap();
        watched.becomes(&[text]).await;
    }
}

/// A save by rename and create, as vim does with `backupcopy=no`: the path is missing for a moment.
#[tokio::test]
async fn saved_by_moving_the_old_one_away() {
    let mut watched = Watched::new(&["a.yaml"]);
    fs::rename(watched.path("a.yaml"), watched.path("a.yaml~")).unwrap();
    watched.write("a.yaml", "two");
    watched.becomes(&["two"]).await;
}

#[tokio::test]
async fn deleted_and_created_again() {
    let mut watched = Watched::new(&["a.yaml"]);
    fs::remove_file(watched.path("a.yaml")).unwrap();
    let missing = SourceError::Missing(watched.path("a.yaml"));
    assert_eq!(watched.fails().await, [missing]);
    assert_eq!(watched.texts(), ["one"]);
    watched.write("a.yaml", "two");
    watched.becomes(&["two"]).await;
}

#[tokio::test]
async fn added_to_and_removed_from_a_directory() {
    let mut watched = Watched::new(&["."]);
    watched.write("b.yaml", "b");
    watched.becomes(&["one", "b"]).await;
    fs::remove_file(watched.path("a.yaml")).unwrap();
    watched.becomes(&["b"]).await;
    fs::rename(watched.path("b.yaml"), watched.path("c.yaml")).unwrap();
    watched.becomes(&["b"]).await;
    fs::remove_file(watched.path("c.yaml")).unwrap();
    assert_eq!(watched.fails().await, [SourceError::NoFiles(watched.path("."))]);
    watched.write("d.json", "d");
    watched.becomes(&["d"]).await;
}

fn config_map(dir: &Path, version: &str, text: &str) {
    fs::create_dir(dir.join(version)).unwrap();
    fs::write(dir.join(version).join("a.yaml"), text).unwrap();
    symlink(version, dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}

/// A ConfigMap update as the kubelet does it, by a swapped link; with the directory and with one of its files as the
/// root.
#[tokio::test]
async fn swapped_as_a_config_map() {
    for root in [".", "a.yaml"] {
        let mut watched = Watched::prepared(&[root], |dir| {
            config_map(dir, "..1", "one");
            symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
        });
        for (version, old, text) in [("..2", "..1", "two"), ("..3", "..2", "three")] {
            config_map(watched.dir.path(), version, text);
            fs::remove_dir_all(watched.path(old)).unwrap();
            watched.becomes(&[text]).await;
        }
    }
}

#[tokio::test]
async fn behind_a_link_to_elsewhere() {
    let mut watched = Watched::prepared(&["conf"], |dir| {
        fs::create_dir(dir.join("conf")).unwrap();
        fs::create_dir(dir.join("elsewhere")).unwrap();
        fs::write(dir.join("elsewhere/real.yaml"), "one").unwrap();
        symlink("../elsewhere/real.yaml", dir.join("conf/a.yaml")).unwrap();
    });
    watched.write("elsewhere/real.yaml", "two");
    watched.becomes(&["two"]).await;
    // A new symbolic link.
    watched.write("elsewhere/other.yaml", "b");
    symlink("../elsewhere/other.yaml", watched.path("conf/b.yaml")).unwrap();
    watched.becomes(&["two", "b"]).await;
    watched.write("elsewhere/other.yaml", "bb");
    watched.becomes(&["two", "bb"]).await;
}

#[tokio::test]
async fn the_directory_replaced() {
    for root in ["conf", "conf/a.yaml"] {
        let mut watched = Watched::prepared(&[root], |dir| {
            fs::create_dir(dir.join("conf")).unwrap();
            fs::write(dir.join("conf/a.yaml"), "one").unwrap();
        });
        fs::create_dir(watched.path("next")).unwrap();
        watched.write("next/a.yaml", "two");
        fs::rename(watched.path("conf"), watched.path("old")).unwrap();
        fs::rename(watched.path("next"), watched.path("conf")).unwrap();
        watched.becomes(&["two"]).await;
        watched.write("conf/a.yaml", "three");
        watched.becomes(&["three"]).await;
        // A directory that is deleted and created again may have the same inode.
        fs::remove_dir_all(watched.path("conf")).unwrap();
        fs::create_dir(watched.path("conf")).unwrap();
        watched.write("conf/a.yaml", "four");
        watched.becomes(&["four"]).await;
        watched.write("conf/a.yaml", "five");
        watched.becomes(&["five"]).await;
    }
}

#[tokio::test]
async fn a_release_link_swapped_above() {
    let mut watched = Watched::prepared(&["current/conf/a.yaml"], |dir| {
        for (release, text) in [("1", "one"), ("2", "two")] {
            fs::create_dir_all(dir.join(release).join("conf")).unwrap();
            fs::write(dir.join(release).join("conf/a.yaml"), text).unwrap();
        }
        symlink("1", dir.join("current")).unwrap();
    });
    symlink("2", watched.path("tmp")).unwrap();
    fs::rename(watched.path("tmp"), watched.path("current")).unwrap();
    watched.becomes(&["two"]).await;
    watched.write("2/conf/a.yaml", "three");
    watched.becomes(&["three"]).await;
}

#[tokio::test]
async fn the_parent_directories_removed_and_created_again() {
    let mut watched = Watched::prepared(&["x/y/a.yaml"], |dir| {
        fs::create_dir_all(dir.join("x/y")).unwrap();
        fs::write(dir.join("x/y/a.yaml"), "one").unwrap();
    });
    fs::remove_dir_all(watched.path("x")).unwrap();
    watched.fails().await;
    fs::create_dir_all(watched.path("x/y")).unwrap();
    watched.write("x/y/a.yaml", "two");
    watched.becomes(&["two"]).await;
}

#[tokio::test]
async fn equal_content_is_no_change() {
    let mut watched = Watched::new(&["a.yaml"]);
    watched.write("a.yaml", "one");
    let change = tokio::time::timeout(DEADLINE, watched.source.changed()).await;
    assert_eq!(change, Ok(Change::Complete));
    assert_eq!(watched.source.refresh(), Ok(vec![]));
}

#[tokio::test]
async fn unrelated_files_and_reads_are_ignored() {
    let mut watched = Watched::new(&["a.yaml"]);
    watched.write("b.yaml", "b");
    fs::read_to_string(watched.path("a.yaml")).unwrap();
    watched.write("a.yaml", "two");
    // Events come in order: the events of the other files are in the queue by now.
    tokio::time::timeout(DEADLINE, watched.source.changed())
        .await
        .expect("an event");
    let dirty = watched.source.queue.take();
    assert!(!dirty.everything);
    assert_eq!(
        dirty.files.into_iter().collect::<Vec<_>>(),
        [watched.path("a.yaml")]
    );
}

#[tokio::test]
async fn a_requested_reload_ends_the_wait() {
    let mut watched = Watched::new(&["a.yaml"]);
    watched.source.reload_handle().reload();
    let change = tokio::time::timeout(DEADLINE, watched.source.changed()).await;
    assert_eq!(change, Ok(Change::Reload));
    assert_eq!(watched.source.refresh(), Ok(vec![]));
    assert!(watched.source.queue.is_empty());
}

#[tokio::test]
async fn a_dropped_wait_loses_nothing() {
    let mut watched = Watched::new(&["a.yaml"]);
    watched.write("a.yaml", "two");
    for _ in 0..3 {
        tokio::select! {
            biased;
            _ = watched.source.changed() => break,
            () = tokio::task::yield_now() => {}
        }
    }
    watched.becomes(&["two"]).await;
}

#[tokio::test(start_paused = true)]
async fn without_watches_files_are_polled() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, "one").unwrap();
    let mut source = FileSource::polling(std::slice::from_ref(&file));
    assert!(!source.refresh().unwrap().is_empty());
    fs::write(&file, "longer").unwrap();
    let start = Instant::now();
    assert_eq!(source.changed().await, Change::Poll);
    assert_eq!(start.elapsed(), POLL);
    assert!(!source.refresh().unwrap().is_empty());
    assert_eq!(source.files.files()[0].text, "longer");
    source.reload_handle().reload();
    assert_eq!(source.changed().await, Change::Reload);
}

/// The debounce on paused time; the test wakes the event queue by hand.
#[tokio::test(start_paused = true)]
async fn a_burst_counts_once_and_a_storm_ends() {
    let mut source = FileSource::polling(&[]);
    let start = Instant::now();
    source.settle(false).await;
    assert_eq!(start.elapsed(), Duration::from_millis(20));

    let storm = Arc::clone(&source.queue);
    let blowing = tokio::spawn(async move {
        loop {
            storm.wake();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let start = Instant::now();
    source.settle(false).await;
    assert_eq!(start.elapsed(), Duration::from_millis(200));
    blowing.abort();
}

/// The reconciler drops the future whenever something else comes first: neither a poll nor the end of a burst is put off by
/// that.
#[tokio::test(start_paused = true)]
async fn deadlines_outlive_a_dropped_future() {
    let mut source = FileSource::polling(&[]);
    let dropped = async |source: &mut FileSource| {
        let _ = tokio::time::timeout(Duration::from_millis(15), source.changed()).await;
    };
    let start = Instant::now();
    while start.elapsed() + Duration::from_millis(15) < POLL {
        dropped(&mut source).await;
    }
    assert_eq!(source.changed().await, Change::Poll);
    assert_eq!(start.elapsed(), POLL);
    source.queue.wake();
    let start = Instant::now();
    let settle = tokio::time::timeout(Duration::from_millis(15), source.settle(true)).await;
    assert!(settle.is_err(), "dropped before its end");
    source.settle(true).await;
    assert!(
        start.elapsed() <= Duration::from_millis(35),
        "{:?}",
        start.elapsed()
    );
}

/// A refresh of one changed file among ten thousand reads that file only, and lists no directory.
#[tokio::test]
async fn one_file_of_ten_thousand() {
    let mut watched = Watched::prepared(&["."], |dir| {
        for n in 0..10_000 {
            fs::write(dir.join(format!("{n:05}.yaml")), "one").unwrap();
        }
    });
    watched.write("05000.yaml", "two");
    tokio::time::timeout(DEADLINE, watched.source.changed())
        .await
        .expect("an event");
    let dirty = watched.source.queue.take();
    assert!(!dirty.everything);
    let start = std::time::Instant::now();
    assert_eq!(watched.source.files.refresh(&dirty.files), Some(Ok(true)));
    println!("refreshed in {:?}", start.elapsed());
    assert_eq!(watched.source.files.files()[5_000].text, "two");
}

/// The completion of a single file cuts the debounce short; a change that may be half of one waits for the whole quiet
/// period.
#[tokio::test]
async fn a_completed_file_skips_the_quiet_time() {
    let mut watched = Watched::new(&["."]);
    watched.write(".a.new", "two");
    fs::rename(watched.path(".a.new"), watched.path("a.yaml")).unwrap();
    assert_eq!(watched.source.changed().await, Change::Complete);
    assert_eq!(watched.source.refresh().unwrap().len(), 1);
    // No further event comes: the change was whole.
    assert_eq!(watched.source.settled().await, Change::Event);

    watched.write("b.yaml", "b");
    fs::remove_file(watched.path("a.yaml")).unwrap();
    assert_eq!(watched.source.changed().await, Change::Event);
    assert_eq!(watched.source.refresh().unwrap().len(), 2);

    // The second half of a change whose first half was read after the early deadline.
    watched.write("c.yaml", "c");
    assert_eq!(watched.source.changed().await, Change::Complete);
    fs::remove_file(watched.path("b.yaml")).unwrap();
    watched.source.refresh().unwrap();
    assert_eq!(watched.source.settled().await, Change::Event);
    watched.becomes(&["c"]).await;
}

#[tokio::test]
async fn a_referenced_file_is_watched_through_its_links() {
    let mut watched = Watched::prepared(&["a.yaml"], |dir| {
        fs::write(dir.join("a.yaml"), "one").unwrap();
        for version in ["v1", "v2"] {
            fs::create_dir_all(dir.join("tls").join(version)).unwrap();
            fs::write(dir.join("tls").join(version).join("a.crt"), version).unwrap();
        }
        symlink("v1", dir.join("tls/..data")).unwrap();
        symlink("..data/a.crt", dir.join("tls/a.crt")).unwrap();
    });
    watched.source.also_watch(&[watched.path("tls/a.crt")]);
    symlink("v2", watched.path("tls/..new")).unwrap();
    fs::rename(watched.path("tls/..new"), watched.path("tls/..data")).unwrap();
    assert_eq!(watched.source.changed().await, Change::Event);
    assert_eq!(watched.source.refresh(), Ok(vec![Event::Touched]));
    watched.write("tls/v2/a.crt", "renewed in place");
    assert_eq!(watched.source.changed().await, Change::Event);
}
