//! The operations `find/` and `pick/`: the table lookup and the choice of a split's target.

use sluice_model::{Snapshot, StickyKey, TrafficSplit, Visibility, normalize_host};

use super::fixture::{self, Get};
use super::{Operation, Run, Weight, operation, repeat};

pub(crate) fn operations() -> Vec<Operation> {
    let mut all = Vec::new();
    for hosts in [1, 1_000, 100_000] {
        all.push(find(&format!("find/exact/{hosts}"), hosts, |names| {
            names.extend((0..names.capacity()).map(fixture::host));
        }));
        all.push(find(&format!("find/wildcard/{hosts}"), hosts, |names| {
            let tenths = (0..names.capacity()).step_by(10);
            names.extend(tenths.map(|nth| format!("x.{}", fixture::host(nth))));
        }));
        all.push(find(&format!("find/miss/{hosts}"), hosts, |names| {
            names.extend((0..names.capacity()).map(|nth| format!("nobody-{nth:06}.elsewhere.example.org")));
        }));
    }
    all.push(operation("find/normalize", Weight::Light, || {
        let raw = String::from("Greeter-000042.Team-7.apps.example.com:8080");
        repeat(move |_| {
            let mut buf = [0; 256];
            normalize_host(std::hint::black_box(raw.as_bytes()), &mut buf).map(str::len)
        })
    }));
    for revisions in [2, 10] {
        all.push(operation(
            format!("pick/drawn/{revisions}"),
            Weight::Light,
            move || drawn(revisions),
        ));
        all.push(operation(
            format!("pick/sticky/{revisions}"),
            Weight::Light,
            move || {
                let snapshot = fixture::split_snapshot(revisions);
                repeat(move |turn| {
                    own(&snapshot)
                        .pick_sticky(StickyKey::of(&turn.to_be_bytes()))
                        .slot
                })
            },
        ));
    }
    all.push(operation("pick/only", Weight::Light, || {
        let snapshot = fixture::split_snapshot(1);
        repeat(move |_| {
            std::hint::black_box(own(&snapshot))
                .only()
                .map(|target| target.slot)
        })
    }));
    all
}

/// Looks up every host of the table in an order that caches cannot predict, as the hosts of many clients come. The
/// hosts to look up are in one sequence in memory: reading them is the cost of the request, not of the table.
fn find(name: &str, hosts: usize, fill: fn(&mut Vec<String>)) -> Operation {
    operation(name, Weight::Light, move || {
        let snapshot = fixture::snapshot(hosts);
        let mut names = Vec::with_capacity(hosts);
        fill(&mut names);
        fastrand::Rng::with_seed(7).shuffle(&mut names);
        let ends: Vec<usize> = names
            .iter()
            .scan(0, |end, name| {
                *end += name.len();
                Some(*end)
            })
            .collect();
        let text = names.concat();
        let (mut nth, mut at) = (0, 0);
        repeat(move |_| {
            if nth == ends.len() {
                (nth, at) = (0, 0);
            }
            let host = &text[at..ends[nth]];
            at = ends[nth];
            nth += 1;
            // References into the service, which is not read: its caller reads it in any case.
            let found = snapshot.table().find(Visibility::External, host, &Get, None);
            std::hint::black_box(&found).is_ok()
        })
    })
}

fn drawn(revisions: u32) -> Run {
    let runtime = fixture::runtime();
    let registry = fixture::registry(&fixture::split_snapshot(revisions), &runtime);
    let table = registry.reader().load();
    repeat(move |_| {
        // Both stay alive until the end of the last run.
        let _ = (&registry, &runtime);
        let entry = table.service(&fixture::service_id("split")).expect("is in it");
        entry.service.main.split.pick(entry.live.next_draw(0, None)).slot
    })
}

fn own(snapshot: &Snapshot) -> &TrafficSplit {
    &snapshot.services()[0].main.split
}
