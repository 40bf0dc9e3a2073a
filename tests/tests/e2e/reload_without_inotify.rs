//! Reloads without inotify events: inotify(7) reports only changes made through the watched directory, on this
//! machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::{Gateway, can_mount, with_defaults};
use sluice_tests::wait::{SOON, quiet, wait_for};
use tempfile::TempDir;

use crate::{WEB, web};

/// The limit where the file itself can be watched.
const SEEN: Duration = Duration::from_secs(1);

/// The limit where only polling helps.
const LOOKED: Duration = Duration::from_secs(3);

/// Two backends, and a place for files.
struct Setup {
    a: HttpBackend,
    b: HttpBackend,
    dir: TempDir,
}

impl Setup {
    async fn new() -> Self {
        Self {
            a: HttpBackend::start("a").await,
            b: HttpBackend::start("b").await,
            dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes in place a config that leads to one of the two.
    fn write(&self, name: &str, to: &HttpBackend) {
        let path = self.path(name);
        let parent = path.parent().expect("a directory");
        std::fs::create_dir_all(parent).expect("the directory is writable");
        std::fs::write(path, with_defaults(&web(to.addr()))).expect("the directory is writable");
    }
}

async fn served(gateway: &Gateway, want: &str, limit: Duration) {
    wait_for(&format!("{want:?} is served"), limit, async || {
        (gateway.get(WEB, "/").await.text() == want).then_some(())
    })
    .await;
}

/// Bind-mounts in the gateway's mount namespace.
fn mount_in(gateway: &Gateway, from: &Path, to: &Path) {
    let pid = gateway.pid().to_string();
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["-t", &pid, "-m", "mount", "--bind"]);
    let done = nsenter.arg(from).arg(to).status();
    assert!(done.is_ok_and(|status| status.success()));
}

/// `docker run -v ./host.yaml:/etc/sluice.yaml`: a write on the host is no event in the container's directory.
#[tokio::test]
async fn a_file_mounted_alone_is_rewritten_in_place() {
    if !can_mount() {
        return;
    }
    let setup = Setup::new().await;
    setup.write("host/host.yaml", &setup.a);
    setup.write("etc/sluice.yaml", &setup.b);
    let file = setup.path("etc/sluice.yaml");
    let gateway = Gateway::builder("")
        .bind_mount(&setup.path("host/host.yaml"), &file)
        .source(&file)
        .start()
        .await;
    served(&gateway, "a", SOON).await;
    setup.write("host/host.yaml", &setup.b);
    served(&gateway, "b", SEEN).await;
    setup.write("host/host.yaml", &setup.a);
    served(&gateway, "a", SEEN).await;
}

/// `-v ./host.yaml:/etc/sluice.d/a.yaml` and `subPath` mounts: one file of a directory is a mount.
#[tokio::test]
async fn a_file_mounted_into_a_directory_is_rewritten_in_place() {
    if !can_mount() {
        return;
    }
    let setup = Setup::new().await;
    setup.write("host/host.yaml", &setup.a);
    setup.write("etc/sluice d/a.yaml", &setup.b);
    let gateway = Gateway::builder("")
        .bind_mount(&setup.path("host/host.yaml"), &setup.path("etc/sluice d/a.yaml"))
        .source(&setup.path("etc/sluice d"))
        .start()
        .await;
    served(&gateway, "a", SOON).await;
    setup.write("host/host.yaml", &setup.b);
    served(&gateway, "b", SEEN).await;
}

/// A write by another name of the file is an event in the directory of that name only.
#[tokio::test]
async fn a_file_is_written_by_another_hard_link() {
    let setup = Setup::new().await;
    setup.write("etc/sluice.yaml", &setup.a);
    std::fs::create_dir(setup.path("other")).unwrap();
    let other = setup.path("other/name.yaml");
    std::fs::hard_link(setup.path("etc/sluice.yaml"), &other).unwrap();
    let gateway = Gateway::builder("")
        .source(&setup.path("etc/sluice.yaml"))
        .start()
        .await;
    served(&gateway, "a", SOON).await;
    setup.write("other/name.yaml", &setup.b);
    served(&gateway, "b", SEEN).await;
    // Saved by rename it is another file, with a watch of its own.
    setup.write("etc/.swp", &setup.a);
    std::fs::rename(setup.path("etc/.swp"), setup.path("etc/sluice.yaml")).unwrap();
    served(&gateway, "a", SEEN).await;
    std::fs::remove_file(&other).unwrap();
    std::fs::hard_link(setup.path("etc/sluice.yaml"), &other).unwrap();
    setup.write("other/name.yaml", &setup.b);
    served(&gateway, "b", SEEN).await;
}

/// A mount over something is no event at all; the watches stay on what lies below.
#[tokio::test]
async fn something_else_is_mounted_there() {
    if !can_mount() {
        return;
    }
    for root in ["etc/conf/sluice.yaml", "etc/conf"] {
        for mounted in ["etc/conf/sluice.yaml", "etc/conf", "etc"] {
            if root == "etc/conf" && mounted == "etc/conf/sluice.yaml" {
                // A file of a directory: SIGHUP is for that.
                continue;
            }
            let setup = Setup::new().await;
            setup.write("etc/conf/sluice.yaml", &setup.a);
            let file = "next/conf/sluice.yaml";
            setup.write(file, &setup.b);
            let below = setup.path("below");
            std::fs::create_dir(&below).unwrap();
            let gateway = Gateway::builder("")
                .bind_mount(&below, &below)
                .source(&setup.path(root))
                .start()
                .await;
            served(&gateway, "a", SOON).await;
            let next = mounted.replace("etc", "next");
            mount_in(&gateway, &setup.path(&next), &setup.path(mounted));
            served(&gateway, "b", LOOKED).await;
            // The file is watched from now on.
            setup.write(file, &setup.a);
            served(&gateway, "a", LOOKED).await;
        }
    }
}

/// A broken file found by polling is logged once, and its repair is noticed.
#[tokio::test]
async fn a_mount_of_something_broken_changes_nothing() {
    if !can_mount() {
        return;
    }
    let setup = Setup::new().await;
    setup.write("etc/sluice.yaml", &setup.a);
    std::fs::create_dir(setup.path("empty")).unwrap();
    let gateway = Gateway::builder("")
        .bind_mount(&setup.path("empty"), &setup.path("empty"))
        .source(&setup.path("etc"))
        .start()
        .await;
    served(&gateway, "a", SOON).await;
    mount_in(&gateway, &setup.path("empty"), &setup.path("etc"));
    gateway.wait_said("the directory has no *.yaml").await;
    quiet(LOOKED).await;
    assert_eq!(gateway.reloads("rejected").await, 1.0, "said once");
    assert_eq!(gateway.get(WEB, "/").await.text(), "a");
    setup.write("empty/sluice.yaml", &setup.b);
    served(&gateway, "b", LOOKED).await;
}
