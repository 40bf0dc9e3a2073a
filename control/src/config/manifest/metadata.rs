//! The `metadata` of objects and templates, and keys that mean nothing here.

use std::collections::BTreeMap;

use sluice_config_shape::{
    Anything, Context, Located, NodeRef, Object, OrNull, Record, Table, Verbatim, WithLocation,
};
use sluice_model::{HttpOption, Visibility};

use crate::config::names::LABEL;

/// Annotations or labels.
pub(super) type Texts = BTreeMap<String, Located<String>>;

/// `metadata`, as far as it could be decoded.
#[derive(Debug, Clone, Default)]
pub(super) struct Metadata {
    pub(super) name: Option<Located<String>>,
    /// `None` after a mistake.
    pub(super) namespace: Option<String>,
    pub(super) labels: Texts,
    pub(super) annotations: Texts,
    /// There is a name, or what was meant as one.
    pub(super) has_name: bool,
}

/// What a Kubernetes API server adds to metadata.
const OF_THE_SERVER: [&str; 11] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
    "clusterName",
];

const TEXTS: Table<WithLocation<Verbatim>> = Table {
    check: |key| Ok(key.to_owned()),
    values: WithLocation(Verbatim),
};

pub(super) const METADATA: Record<Metadata> = Record {
    name: "ObjectMeta",
    doc: "Name and namespace.",
    decode: |o| {
        let name = o.optional("name", "The name.", OrNull(WithLocation(LABEL)));
        let namespace = o.optional("namespace", "Default: default.", OrNull(LABEL));
        let labels = o.optional("labels", "Labels.", OrNull(TEXTS));
        let annotations = o.optional("annotations", "Annotations.", OrNull(TEXTS));
        for key in OF_THE_SERVER {
            o.optional(key, "", Anything);
        }
        o.close();
        Some(Metadata {
            has_name: o.has_or_meant("name") && !matches!(name, Some(None)),
            name: name.flatten(),
            namespace: match o.has("namespace") {
                true => namespace.map(|namespace| namespace.unwrap_or_else(default_namespace)),
                false => Some(default_namespace()),
            },
            labels: labels.flatten().unwrap_or_default(),
            annotations: annotations.flatten().unwrap_or_default(),
        })
    },
};

fn default_namespace() -> String {
    "default".to_owned()
}

/// Whether a value says nothing: null, `false`, or an empty text, list or mapping.
pub(super) fn is_nothing(value: &NodeRef) -> bool {
    match value.scalar() {
        Some(scalar) => scalar.is_null() || scalar.as_bool() == Some(false) || scalar.text().is_empty(),
        None => value.list_len() == Some(0) || value.is_mapping() && value.entries().next().is_none(),
    }
}

/// Fields of an object that mean nothing here.
#[derive(Debug, Clone, Default)]
pub(super) struct Unused(Vec<NodeRef>);

impl Unused {
    /// Asks for keys that are known and mean nothing here.
    pub(super) fn ask(&mut self, o: &mut Object<'_>, keys: &[&'static str]) {
        for key in keys {
            o.optional(key, "", Anything);
            if let Some(value) = o.value(key)
                && !is_nothing(&value)
            {
                self.0.push(value);
            }
        }
    }

    pub(super) fn add(&mut self, node: NodeRef) {
        self.0.push(node);
    }

    pub(super) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// One warning that names all fields.
    pub(super) fn warn(&self, object: &NodeRef, what: &str, cx: &mut Context) {
        if self.0.is_empty() {
            return;
        }
        let base = object.path();
        let paths = self.0.iter().map(|node| {
            let path = node.path();
            let below = path.strip_prefix(&base).unwrap_or(&path);
            below.trim_start_matches('.').to_owned()
        });
        let mut paths: Vec<String> = paths.collect();
        paths.sort();
        paths.dedup();
        let message = format!(
            "of this {what} these fields do not apply here: {}",
            paths.join(", ")
        );
        let hint = "nothing runs in a container or a pod here: leave them, or take them out";
        cx.report(object.error(message).hint(hint).warning());
    }
}

/// Checks the keys of one group of annotations or labels: unknown ones are mistakes. Values with `false` are known and mean
/// nothing here.
pub(super) fn check_group(
    texts: &Texts,
    group: &str,
    known: &[(&'static str, bool)],
    unused: &mut Unused,
    cx: &mut Context,
) {
    for (key, value) in texts {
        let Some(name) = key.strip_prefix(group).and_then(|rest| rest.strip_prefix('/')) else {
            continue;
        };
        match known.iter().find(|(known, _)| *known == name) {
            Some((_, true)) => {}
            Some((_, false)) => unused.add(value.node.clone()),
            None => {
                let meant = crate::config::did_you_mean(name, known.iter().map(|(known, _)| *known));
                let diagnostic = value.node.whole().error(format!("'{key}' is no key of {group}"));
                cx.report(diagnostic.hint(match meant {
                    Some(meant) => format!("did you mean '{group}/{meant}'?"),
                    None => "leave it out".to_owned(),
                }));
            }
        }
    }
}

/// The first of several spellings that is there.
pub(super) fn first<'t>(texts: &'t Texts, keys: &[&str]) -> Option<&'t Located<String>> {
    keys.iter().find_map(|key| texts.get(*key))
}

/// Networking keys of objects; of each whether it applies here.
const NETWORKING: [(&str, bool); 14] = [
    ("visibility", true),
    ("httpOption", true),
    ("http-option", true),
    ("httpProtocol", true),
    ("http-protocol", true),
    ("ingress.class", false),
    ("ingress-class", false),
    ("certificate.class", false),
    ("certificate-class", false),
    ("disableAutoTLS", false),
    ("disable-auto-tls", false),
    ("disable-external-domain-tls", false),
    ("wildcardDomain", false),
    ("certificate-type", false),
];

const NETWORKING_GROUP: &str = "networking.knative.dev";

/// Serving's keys of objects; of each whether it applies here, or is only ever written by others.
const SERVING: [(&str, bool); 22] = [
    ("rollout-duration", true),
    ("rolloutDuration", true),
    ("visibility", true),
    ("progress-deadline", true),
    ("progressDeadline", true),
    ("no-gc", true),
    ("creator", true),
    ("lastModifier", true),
    ("forceUpgrade", true),
    ("lastPinned", true),
    ("routes", true),
    ("route", true),
    ("service", true),
    ("serviceUID", true),
    ("configuration", true),
    ("configurationUID", true),
    ("configurationGeneration", true),
    ("revision", true),
    ("revisionUID", true),
    ("routingState", true),
    ("routingStateModified", true),
    ("routeNamespace", true),
];

pub(super) const SERVING_GROUP: &str = "serving.knative.dev";

/// Checks the annotations and labels of an object in the groups of networking and serving.
pub(super) fn check_groups(metadata: &Metadata, unused: &mut Unused, cx: &mut Context) {
    for texts in [&metadata.annotations, &metadata.labels] {
        check_group(texts, NETWORKING_GROUP, &NETWORKING, unused, cx);
        check_group(texts, SERVING_GROUP, &SERVING, unused, cx);
    }
}

/// Who may reach the object: everybody, unless a label says otherwise.
pub(super) fn visibility(metadata: &Metadata, cx: &mut Context) -> Visibility {
    let keys = [
        "networking.knative.dev/visibility",
        "serving.knative.dev/visibility",
    ];
    let Some(label) = first(&metadata.labels, &keys) else {
        return Visibility::External;
    };
    if label.value != "cluster-local" {
        let shown = sluice_config_shape::quoted(&label.value);
        let message = format!("{shown} is no visibility");
        let hint = "write cluster-local, or leave the label out";
        cx.report(label.node.error(message).hint(hint));
    }
    Visibility::Internal
}

/// What plain HTTP gets.
pub(super) fn http_option(metadata: &Metadata, cx: &mut Context) -> HttpOption {
    let keys = [
        "networking.knative.dev/http-option",
        "networking.knative.dev/httpOption",
        "networking.knative.dev/http-protocol",
        "networking.knative.dev/httpProtocol",
    ];
    let Some(option) = first(&metadata.annotations, &keys) else {
        return HttpOption::Enabled;
    };
    match option.value.to_ascii_lowercase().as_str() {
        "enabled" => HttpOption::Enabled,
        "redirected" => HttpOption::Redirected,
        _ => {
            let shown = sluice_config_shape::quoted(&option.value);
            let message = format!("{shown} is neither enabled nor redirected");
            cx.report(option.node.error(message));
            HttpOption::Enabled
        }
    }
}
