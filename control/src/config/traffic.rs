//! `traffic:` blocks, as Knative has them.

use serde_json::Value;
use sluice_config_shape::{
    Context, Definitions, Flag, List, Located, NodeRef, Object, Percentage, Record, Shape, Verbatim,
    WithLocation,
};
use sluice_model::{Percent, Tag};

use super::names::{LABEL, TAG};

/// The bound of targets in one traffic block: they are compared in pairs.
const MAX_TARGETS: usize = 1_000;

/// The revision that a target names.
#[derive(Debug, Clone)]
pub(crate) enum TargetRevision {
    /// The revision of this name. `latest`: the file also says that the revision is the latest, as dumps do.
    Named { name: Located<String>, latest: bool },
    /// The last revision listed.
    Latest,
    /// The latest revision of this configuration, which has to be the service itself.
    Configuration(Located<String>),
}

/// One target of a traffic block.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) revision: TargetRevision,
    pub(crate) percent: Percent,
    pub(crate) tag: Option<Located<Tag>>,
}

/// A traffic block.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    pub(crate) targets: Vec<Target>,
}

/// The shape of a traffic block.
pub(super) struct TrafficShape {
    /// Tags belong to a service's own traffic: they have hosts.
    pub(super) tags: bool,
}

impl Shape for TrafficShape {
    type Out = Traffic;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Traffic> {
        let before = cx.errors();
        if let Some(targets) = at.list_len().filter(|targets| *targets > MAX_TARGETS) {
            let message = format!("{targets} targets are more than {MAX_TARGETS}");
            cx.report(at.whole().error(message));
            return None;
        }
        let targets = List(TARGET).decode(at, cx)?;
        if cx.errors() == before {
            check_sum(&targets, at, cx);
        }
        self.check_tags(&targets, cx);
        Some(Traffic { targets })
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        List(TARGET).schema(definitions)
    }
}

impl TrafficShape {
    fn check_tags(&self, targets: &[Target], cx: &mut Context) {
        for (i, target) in targets.iter().enumerate() {
            let Some(tag) = &target.tag else { continue };
            if !self.tags {
                let hint = "a tag has a host of its own: put it into the service's traffic";
                cx.report(tag.node.error("a route's traffic has no tags").hint(hint));
                continue;
            }
            let same = |t: &&Target| t.tag.as_ref().is_some_and(|other| other.value == tag.value);
            if let Some(first) = targets[..i].iter().find(same).and_then(|t| t.tag.as_ref()) {
                let message = format!("tag '{}' is used twice", tag.value);
                let diagnostic = tag.node.error(message).hint("rename one of them");
                cx.report(diagnostic.related(first.node.location(), "it is used here first"));
            }
        }
    }
}

/// A target's share of the traffic.
struct Share;

impl Shape for Share {
    type Out = Percent;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Percent> {
        Percent::from_hundredths(Percentage.decode(at, cx)?)
    }

    fn schema(&self, definitions: &mut Definitions) -> Value {
        Percentage.schema(definitions)
    }
}

fn check_sum(targets: &[Target], at: &NodeRef, cx: &mut Context) {
    let sum: u64 = targets.iter().map(|t| u64::from(t.percent.hundredths())).sum();
    let whole = u64::from(Percent::WHOLE);
    let show = |h: u64| {
        let text = format!("{}.{:02}", h / 100, h % 100);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let hint = match sum.cmp(&whole) {
        std::cmp::Ordering::Equal => return,
        std::cmp::Ordering::Less => format!("{} is missing", show(whole - sum)),
        std::cmp::Ordering::Greater => format!("{} is too much", show(sum - whole)),
    };
    let message = format!("percents add up to {}, not to 100", show(sum));
    cx.report(at.whole().error(message).hint(hint));
}

const TARGET: Record<Target> = Record {
    name: "TrafficTarget",
    doc: "A share of the traffic for one revision, a tag that reaches it, or both.",
    decode: target,
};

fn target(o: &mut Object<'_>) -> Option<Target> {
    let before = o.cx.errors();
    let name = o.optional("revisionName", "The revision.", WithLocation(LABEL));
    let configuration = o.optional(
        "configurationName",
        "As Knative's Routes have it: the latest revision of this service. The service's own name.",
        WithLocation(LABEL),
    );
    let latest = o.optional(
        "latestRevision",
        "true: the last revision listed. false goes with revisionName, as in dumps.",
        WithLocation(Flag),
    );
    let percent = o.optional(
        "percent",
        "The share, up to two decimals; all of a block add up to exactly 100. 0 where only a tag is given.",
        Share,
    );
    let tag = o.optional(
        "tag",
        "Reaches the revision under {tag}-{host}, whatever its share.",
        WithLocation(TAG),
    );
    o.optional("url", "Ignored: the status of a dump.", Verbatim);
    if let Some(url) = o.key("url") {
        let message = "'url' is ignored: hosts follow from names, domain and hosts";
        o.cx.report(url.error(message).warning());
    }
    o.close();

    let is_latest = latest.as_ref().is_some_and(|l| l.value);
    let named = ["revisionName", "configurationName"];
    o.only_one_of(&named);
    let revision = match (name, configuration, latest) {
        (Some(name), _, _) => Some(TargetRevision::Named {
            name,
            latest: is_latest,
        }),
        (None, Some(configuration), _) => Some(TargetRevision::Configuration(configuration)),
        (None, None, Some(latest)) if latest.value => Some(TargetRevision::Latest),
        (None, None, _) => {
            let named = ["revisionName", "configurationName"];
            if !named.iter().any(|key| o.has_or_meant(key)) && o.cx.errors() == before {
                let diagnostic = o.at.whole().error("the target names no revision");
                let hint = "give revisionName, or latestRevision: true";
                o.cx.report(diagnostic.hint(hint));
            }
            None
        }
    };
    if percent.is_none() && tag.is_none() && !o.has_or_meant("percent") && !o.has_or_meant("tag") {
        let diagnostic = o.at.whole().error("the target has neither percent nor tag");
        o.cx.report(diagnostic.hint("give it a percent"));
    }
    Some(Target {
        revision: revision?,
        percent: percent.or_else(|| Percent::from_hundredths(0))?,
        tag,
    })
}
