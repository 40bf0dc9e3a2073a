use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3600;
/// Some day.
const NOW: u64 = 1_000_000 * HOUR;

fn kept(nth: u32, age: u64, idle: u64) -> KeptRevision {
    KeptRevision {
        name: format!("a-{nth:05}"),
        generation: nth,
        template: serde_json::json!({"spec": {"nth": nth}}),
        created: NOW - age * HOUR,
        last_active: NOW - idle * HOUR,
        active: false,
    }
}

/// A release of these revisions, of which the last one is the latest and has all traffic.
fn release(revisions: Vec<KeptRevision>) -> Release {
    let ids = revisions.iter().map(|kept| id(&kept.name));
    let ids: Arc<[RevisionId]> = ids.collect();
    let mut history = ServiceHistory {
        settled: revisions.last().map(|kept| kept.name.clone()),
        revisions,
        ..ServiceHistory::default()
    };
    if let Some(latest) = history.revisions.last_mut() {
        latest.active = true;
    }
    Release {
        history: Arc::new(history),
        digest: 1,
        reached: ids.last().cloned().into_iter().collect(),
        scaled: Arc::default(),
        revisions: ids,
        policy: None,
        is_manifest: true,
        follows_latest: 10_000,
    }
}

fn id(name: &str) -> RevisionId {
    RevisionId::parse("default", name).expect("a name")
}

fn retention(min: usize, max: Option<usize>) -> Retention {
    Retention {
        min_non_active: min,
        max_non_active: max,
        ..Retention::default()
    }
}

/// The numbers of the revisions that are left.
fn left(release: &Release, retention: &Retention) -> Vec<u32> {
    let next = tend(release, |_| false, retention, NOW);
    let history = next.as_ref().unwrap_or(&release.history);
    history.revisions.iter().map(|kept| kept.generation).collect()
}

/// What it is about, the ages of revisions (created, last active), the rules, and what is collected.
type Case = (&'static str, &'static [(u64, u64)], Retention, &'static [u32]);

#[test]
fn revisions_are_collected_by_the_rules_of_knative() {
    // Of each its age and how long nothing led to it, in hours. The last one is the latest.
    let cases: [Case; 10] = [
        ("too young", &[(47, 47), (0, 0)], retention(0, None), &[1, 2]),
        ("stale", &[(48, 15), (0, 0)], retention(0, None), &[2]),
        ("active lately", &[(48, 14), (0, 0)], retention(0, None), &[1, 2]),
        (
            "as many as the minimum",
            &[(99, 99), (98, 98), (0, 0)],
            retention(2, None),
            &[1, 2, 3],
        ),
        (
            "the oldest of one more",
            &[(99, 99), (98, 98), (0, 0)],
            retention(1, None),
            &[2, 3],
        ),
        (
            "by activity, not by age",
            &[(99, 20), (98, 98), (0, 0)],
            retention(1, None),
            &[1, 3],
        ),
        (
            "young, but too many",
            &[(3, 3), (2, 2), (1, 1), (0, 0)],
            retention(0, Some(1)),
            &[3, 4],
        ),
        (
            "a stale one before an older one",
            &[(10, 100), (99, 99), (1, 1), (0, 0)],
            retention(0, Some(2)),
            &[1, 3, 4],
        ),
        (
            "one limit alone",
            &[(99, 1), (1, 1), (0, 0)],
            Retention {
                since_last_active: None,
                ..retention(0, None)
            },
            &[2, 3],
        ),
        (
            "no limit at all",
            &[(99, 99), (98, 98), (0, 0)],
            Retention {
                since_create: None,
                since_last_active: None,
                ..retention(0, None)
            },
            &[1, 2, 3],
        ),
    ];
    for (what, ages, retention, expected) in cases {
        let revisions = (1..).zip(ages).map(|(nth, (age, idle))| kept(nth, *age, *idle));
        let release = release(revisions.collect());
        assert_eq!(left(&release, &retention), expected, "{what}");
    }
    let many = release((1..=1200).map(|nth| kept(nth, 1, 1)).collect());
    assert_eq!(left(&many, &Retention::default()).len(), 1001);
}

#[test]
fn an_annotation_keeps_a_revision_and_the_greatest_number_is_never_free() {
    let mut by_hand = kept(1, 99, 99);
    by_hand.template = serde_json::json!({"metadata": {"annotations": {NO_GC: "true"}}});
    // The latest is a revision by name that was there before the last number.
    let release = release(vec![by_hand, kept(2, 99, 99), kept(9, 99, 99), kept(3, 0, 0)]);
    assert_eq!(left(&release, &retention(0, Some(0))), [1, 9, 3]);
}

#[test]
fn a_history_fits_its_document() {
    let large = |nth| KeptRevision {
        template: serde_json::json!({"spec": "x".repeat(1 << 20)}),
        ..kept(nth, 0, 0)
    };
    let release = release((1..=20).map(large).collect());
    let next = tend(&release, |_| false, &Retention::default(), NOW);
    let next = next.expect("some are collected");
    assert_eq!(next.revisions.len(), 11);
    assert!(serde_json::to_vec(&next).expect("JSON").len() <= 16 << 20);
}

#[test]
fn it_is_noted_when_nothing_leads_to_a_revision_any_more() {
    let mut first = release(vec![kept(1, 99, 99), kept(2, 0, 0)]);
    first.reached = [id("a-00001"), id("a-00002")].into();
    let next = tend(&first, |_| false, &Retention::default(), NOW).expect("it is active");
    assert!(next.revisions[0].active);
    let mut then = release(next.revisions);
    let later = NOW + 100 * HOUR;
    assert_eq!(
        tend(&then, |id| id.name() == "a-00001", &retention(0, None), later),
        None,
        "it has requests"
    );
    let next = tend(&then, |_| false, &retention(0, None), later).expect("it is free");
    assert_eq!((next.revisions.len(), next.revisions[0].last_active), (2, later));
    then.history = Arc::new(next);
    assert_eq!(
        tend(&then, |_| false, &retention(0, None), later + 14 * HOUR),
        None
    );
    let next = tend(&then, |_| false, &retention(0, None), later + 15 * HOUR).expect("it is stale");
    assert_eq!(next.revisions.len(), 1);
}

proptest! {
    /// Whatever leads to a revision, it stays; what is collected is not needed to name the next one; and once is enough.
    #[test]
    fn nothing_with_traffic_or_waiters_is_collected(
        ages in prop::collection::vec((0_u64..100, 0_u64..100, any::<bool>()), 1..40),
        reached in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        busy in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        settled in any::<prop::sample::Index>(),
        (min, extra) in (0_usize..10, prop::option::of(0_usize..10)),
        limits in (prop::option::of(0_u64..60), prop::option::of(0_u64..60)),
    ) {
        let revisions: Vec<KeptRevision> = (1..)
            .zip(&ages)
            .map(|(nth, (age, idle, active))| KeptRevision { active: *active, ..kept(nth, *age, *idle) })
            .collect();
        let mut release = release(revisions);
        let all = Arc::clone(&release.revisions);
        let mut history = (*release.history).clone();
        history.settled = Some(settled.get(&all).name().to_owned());
        release.history = Arc::new(history);
        let of = |which: &[prop::sample::Index]| -> Vec<RevisionId> {
            which.iter().map(|index| index.get(&all).clone()).collect()
        };
        let (reached, busy) = (of(&reached), of(&busy));
        release.reached = reached.clone().into();
        let hours = |limit: Option<u64>| limit.map(|limit| Duration::from_secs(limit * HOUR));
        let retention = Retention {
            since_create: hours(limits.0),
            since_last_active: hours(limits.1),
            min_non_active: min,
            max_non_active: extra.map(|extra| min + extra),
        };
        let next = tend(&release, |id| busy.contains(id), &retention, NOW);
        let next = next.unwrap_or_else(|| (*release.history).clone());
        let names: Vec<&str> = next.revisions.iter().map(|kept| kept.name.as_str()).collect();
        let needed = reached.iter().chain(&busy).map(RevisionId::name);
        let needed = needed.chain(next.settled.as_deref()).chain(all.last().map(RevisionId::name));
        for name in needed {
            prop_assert!(names.contains(&name), "{name} of {names:?}");
        }
        let greatest = |all: &[KeptRevision]| all.iter().map(|kept| kept.generation).max();
        prop_assert_eq!(greatest(&next.revisions), greatest(&release.history.revisions));
        let before = release.history.revisions.iter().map(|kept| kept.name.as_str());
        let before: Vec<&str> = before.filter(|name| names.contains(name)).collect();
        prop_assert_eq!(&before, &names, "in their order");
        let inactive = next.revisions.iter().filter(|kept| !kept.active).count();
        if let Some(max) = retention.max_non_active {
            prop_assert!(inactive <= max + 1, "and the one with the greatest number");
        }
        release.history = Arc::new(next);
        prop_assert_eq!(tend(&release, |id| busy.contains(id), &retention, NOW), None);
    }
}
