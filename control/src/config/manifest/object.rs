//! Objects: Services, Routes and Configurations.

use std::sync::Arc;
use std::time::Duration;

use sluice_config_shape::{
    Anything, Context, Definitions, Located, MAX_DURATION, NodeRef, OrNull, Record, Shape,
};
use sluice_model::ServiceId;

use super::Decoder;
use super::history::{self, Past, PresentDraft};
use super::metadata::{METADATA, Metadata, Unused, check_groups, first, http_option, visibility};
use super::quantity::duration;
use crate::config::service::ServiceDraft;
use crate::config::traffic::{TargetRevision, Traffic, TrafficShape};
use crate::release::ServiceHistory;
use crate::rollout::RolloutPolicy;

/// A Route, which is a service once its Configuration is found, maybe in another file.
#[derive(Debug, Clone)]
pub(crate) struct RouteOfManifest {
    /// The Configuration that the traffic names.
    pub(crate) configuration: Option<Located<String>>,
    pub(crate) history: Option<Arc<ServiceHistory>>,
}

/// A Configuration.
#[derive(Debug, Clone)]
pub(crate) struct ConfigurationDraft {
    pub(crate) node: NodeRef,
    pub(crate) name: Located<String>,
    pub(crate) namespace: String,
    /// `None` after a mistake.
    pub(crate) present: Option<PresentDraft>,
}

/// The parts of an object, of any kind.
struct Parts {
    metadata: Metadata,
    spec: Spec,
    status: Option<NodeRef>,
}

#[derive(Default)]
struct Spec {
    template: Option<NodeRef>,
    traffic: Option<Traffic>,
}

const SERVICE: Record<Parts> = Record {
    name: "KnativeService",
    doc: "A Service.",
    decode: |o| parts(o, SERVICE_SPEC),
};

const CONFIGURATION: Record<Parts> = Record {
    name: "KnativeConfiguration",
    doc: "A Configuration.",
    decode: |o| parts(o, CONFIGURATION_SPEC),
};

const ROUTE: Record<Parts> = Record {
    name: "KnativeRoute",
    doc: "A Route.",
    decode: |o| parts(o, ROUTE_SPEC),
};

fn parts(o: &mut sluice_config_shape::Object<'_>, spec: Record<Spec>) -> Option<Parts> {
    for key in ["apiVersion", "kind"] {
        o.optional(key, "", Anything);
    }
    let metadata = o.required("metadata", "Name and namespace.", METADATA);
    let spec = o.required("spec", "What is wanted.", spec);
    o.optional("status", "Of a dump.", Anything);
    let status = o.value("status");
    o.close();
    let metadata = metadata?;
    if let (false, Some(key)) = (metadata.has_name, o.key("metadata")) {
        o.cx.report(key.error("the key 'name' is missing"));
    }
    Some(Parts {
        metadata,
        spec: spec.unwrap_or_default(),
        status,
    })
}

const SERVICE_SPEC: Record<Spec> = Record {
    name: "KnativeServiceSpec",
    doc: "Template and traffic.",
    decode: |o| {
        o.required("template", "What the next revision is made from.", Anything);
        let traffic = o.optional(
            "traffic",
            "Default: 100 % to the latest revision.",
            OrNull(TRAFFIC),
        );
        Some(Spec {
            template: o.value("template"),
            traffic: traffic.flatten().flatten(),
        })
    },
};

const CONFIGURATION_SPEC: Record<Spec> = Record {
    name: "KnativeConfigurationSpec",
    doc: "A template.",
    decode: |o| {
        o.required("template", "What the next revision is made from.", Anything);
        Some(Spec {
            template: o.value("template"),
            traffic: None,
        })
    },
};

const ROUTE_SPEC: Record<Spec> = Record {
    name: "KnativeRouteSpec",
    doc: "Traffic.",
    decode: |o| {
        let traffic = o.required("traffic", "Shares of a Configuration's revisions.", TRAFFIC);
        Some(Spec {
            template: None,
            traffic: traffic.flatten(),
        })
    },
};

/// Traffic, with the rules of Knative besides; an empty list counts as none.
struct KnativeTraffic;

const TRAFFIC: KnativeTraffic = KnativeTraffic;

impl Shape for KnativeTraffic {
    type Out = Option<Traffic>;

    fn decode(&self, at: &NodeRef, cx: &mut Context) -> Option<Self::Out> {
        if at.list_len() == Some(0) {
            return Some(None);
        }
        let traffic = TrafficShape { tags: true }.decode(at, cx)?;
        for target in &traffic.targets {
            if let TargetRevision::Named { name, latest: true } = &target.revision {
                let message = "revisionName and 'latestRevision: true' exclude each other";
                cx.report(name.node.error(message).hint("keep one of them"));
            }
        }
        Some(Some(traffic))
    }

    fn schema(&self, definitions: &mut Definitions) -> serde_json::Value {
        TrafficShape { tags: true }.schema(definitions)
    }
}

/// The draft of a service whose revisions are open.
fn draft(at: &NodeRef, metadata: &Metadata, traffic: Option<Traffic>, cx: &mut Context) -> ServiceDraft {
    let rollout = rollout(metadata, cx);
    ServiceDraft {
        node: at.clone(),
        further: None,
        all_named: false,
        shorthand: false,
        manifest: None,
        route: None,
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        visibility: visibility(metadata, cx),
        hosts: Vec::new(),
        http_option: http_option(metadata, cx),
        traffic,
        sticky: None,
        cold: None,
        no_wake: None,
        rollout: rollout.as_ref().map(|(policy, _)| Arc::clone(policy)),
        rollout_at: rollout.map(|(_, node)| node),
        routes: Vec::new(),
        revisions: Vec::new(),
    }
}

/// Knative's own steps, where an annotation asks for them.
fn rollout(metadata: &Metadata, cx: &mut Context) -> Option<(Arc<RolloutPolicy>, NodeRef)> {
    let keys = [
        "serving.knative.dev/rollout-duration",
        "serving.knative.dev/rolloutDuration",
    ];
    let text = first(&metadata.annotations, &keys)?;
    let duration = duration(text, Duration::ZERO, MAX_DURATION, false, cx)?;
    let policy = (!duration.is_zero()).then(|| Arc::new(RolloutPolicy::of_duration(duration)))?;
    Some((policy, text.node.clone()))
}

impl Decoder<'_> {
    fn past(&self) -> Past<'_> {
        Past {
            path: self.path,
            env: self.env,
        }
    }

    fn history(&self, metadata: &Metadata) -> Option<&Arc<ServiceHistory>> {
        let id = ServiceId::parse(metadata.namespace.as_ref()?, &metadata.name.as_ref()?.value);
        self.histories.get(&id.ok()?)
    }

    /// Decodes a Service.
    pub(super) fn service(&mut self, at: &NodeRef, cx: &mut Context) {
        let Some(parts) = SERVICE.decode(at, cx) else {
            return;
        };
        let metadata = &parts.metadata;
        let mut unused = Unused::default();
        check_groups(metadata, &mut unused, cx);
        let mut draft = draft(at, metadata, parts.spec.traffic, cx);
        for target in draft.traffic.iter().flat_map(|traffic| &traffic.targets) {
            if let TargetRevision::Configuration(name) = &target.revision {
                let message = "a Service's traffic goes to revisions of its own";
                let hint = "write latestRevision: true in place of configurationName";
                cx.report(name.node.error(message).hint(hint));
            }
        }
        if let (Some(template), Some(name)) = (&parts.spec.template, &metadata.name)
            && let Some(present) = history::present(template, name, parts.status.as_ref(), &mut unused, cx)
        {
            let history = self.history(metadata).map(|history| &**history);
            let kept = history::kept(history, name, self.past(), cx);
            if let Some((revisions, manifest)) = history::join(present, kept, history, cx) {
                draft.revisions = revisions;
                draft.manifest = Some(manifest);
                draft.all_named = true;
            }
        }
        unused.warn(at, "Service", cx);
        self.services.push(draft);
    }

    /// Decodes a Configuration.
    pub(super) fn configuration(&mut self, at: &NodeRef, cx: &mut Context) {
        let Some(parts) = CONFIGURATION.decode(at, cx) else {
            return;
        };
        let metadata = parts.metadata;
        let mut unused = Unused::default();
        check_groups(&metadata, &mut unused, cx);
        let (Some(name), Some(namespace)) = (metadata.name, metadata.namespace) else {
            return;
        };
        let template = parts.spec.template;
        let present = template
            .and_then(|template| history::present(&template, &name, parts.status.as_ref(), &mut unused, cx));
        unused.warn(at, "Configuration", cx);
        self.configurations.push(ConfigurationDraft {
            node: at.clone(),
            name,
            namespace,
            present,
        });
    }

    /// Decodes a Route.
    pub(super) fn route(&mut self, at: &NodeRef, cx: &mut Context) {
        let Some(parts) = ROUTE.decode(at, cx) else { return };
        let metadata = &parts.metadata;
        let mut unused = Unused::default();
        check_groups(metadata, &mut unused, cx);
        unused.warn(at, "Route", cx);
        let mut draft = draft(at, metadata, parts.spec.traffic, cx);
        let history = self.history(metadata).cloned();
        let mut configuration: Option<Located<String>> = None;
        for target in draft.traffic.iter_mut().flat_map(|traffic| &mut traffic.targets) {
            let TargetRevision::Configuration(name) = &target.revision else {
                continue;
            };
            let first = configuration.get_or_insert_with(|| name.clone());
            if first.value != name.value {
                let message = format!(
                    "the Route has two Configurations, '{}' and '{}'",
                    first.value, name.value
                );
                let hint = "here a Route has the revisions of one Configuration: give each a Service";
                let diagnostic = name.node.error(message).hint(hint);
                cx.report(diagnostic.related(first.node.location(), "the other one"));
            }
            target.revision = TargetRevision::Latest;
        }
        if let Some(name) = configuration.as_ref().or(metadata.name.as_ref()) {
            draft.revisions = history::kept(history.as_deref(), name, self.past(), cx);
        }
        draft.route = Some(Box::new(RouteOfManifest {
            configuration,
            history,
        }));
        self.services.push(draft);
    }
}
