//! The container of a template: image, entrypoint, environment, port and probes.

use sluice_config_shape::{
    Anything, Choice, Integer, List, Located, NodeRef, Object, OrNull, Record, Seconds, Verbatim,
    WithLocation, quoted,
};
use sluice_model::{Probe, ProbeKind, Protocol};

use super::metadata::{Unused, is_nothing};
use crate::config::names::PROBE_PATH;
use crate::config::process::Template;

/// A container, as far as it could be decoded. Texts may hold `$(NAME)`.
#[derive(Debug, Clone)]
pub(crate) struct ContainerDraft {
    pub(crate) image: Located<String>,
    /// Replaces the entrypoint, where `images` allows that.
    pub(crate) command: Option<Located<Vec<String>>>,
    pub(crate) args: Vec<String>,
    /// In the order of the manifest: a value may refer to those before it.
    pub(crate) env: Vec<(String, String)>,
    /// The configuration that makes the revision: `K_CONFIGURATION`.
    pub(crate) configuration: String,
    /// Instances of a reserve that is always there, before those that requests start; 0: no reserve.
    pub(crate) reserve: u32,
    /// The revision is one of a history, not the present one.
    pub(crate) is_kept: bool,
    pub(crate) node: NodeRef,
}

/// A container with what the revision has from it.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) container: Option<ContainerDraft>,
    pub(super) protocol: Protocol,
    pub(super) readiness: Option<Probe>,
    pub(super) unused: Unused,
}

/// Fields of a container that mean nothing here.
const UNUSED: [&str; 17] = [
    "envFrom",
    "lifecycle",
    "livenessProbe",
    "resizePolicy",
    "resources",
    "restartPolicy",
    "securityContext",
    "startupProbe",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
    "imagePullPolicy",
];

/// Names that Knative gives the container.
const RESERVED: [&str; 4] = ["PORT", "K_SERVICE", "K_REVISION", "K_CONFIGURATION"];

pub(super) const CONTAINER: Record<Decoded> = Record {
    name: "Container",
    doc: "A container that an entry of images makes a process.",
    decode: |o| {
        let mut unused = Unused::default();
        let image = o.required("image", "The image.", WithLocation(Verbatim));
        o.optional("name", "Its name.", Anything);
        let command = o.optional("command", "The entrypoint.", OrNull(WithLocation(List(Template))));
        let args = o.optional("args", "Appended to the entrypoint.", OrNull(List(Template)));
        let env = o.optional("env", "Variables.", OrNull(List(ENV)));
        let ports = o.optional("ports", "At most one.", OrNull(WithLocation(List(PORT))));
        let readiness = o.optional("readinessProbe", "Default: a TCP connect.", OrNull(PROBE));
        unused.ask(o, &UNUSED);
        o.close();
        let image = image.filter(|image| match image.value.is_empty() {
            true => {
                o.cx.report(image.node.whole().error("the image is empty"));
                false
            }
            false => true,
        });
        let env = check_env(env.flatten().unwrap_or_default(), &mut unused, o);
        let protocol = check_ports(ports.flatten(), o);
        let readiness = readiness.flatten().and_then(|(probe, of_probe)| {
            unused.append(of_probe);
            probe
        });
        let command = command.flatten().filter(|command| !command.value.is_empty());
        Some(Decoded {
            container: image.map(|image| ContainerDraft {
                image,
                command,
                args: args.flatten().unwrap_or_default(),
                env,
                configuration: String::new(),
                is_kept: false,
                reserve: 0,
                node: o.at.clone(),
            }),
            protocol,
            readiness,
            unused,
        })
    },
};

struct Variable {
    name: Option<Located<String>>,
    value: String,
    /// The value is to come from elsewhere in the cluster.
    from: Option<NodeRef>,
}

const ENV: Record<Variable> = Record {
    name: "EnvVar",
    doc: "A variable.",
    decode: |o| {
        let name = o.required("name", "Its name.", WithLocation(Verbatim));
        let value = o.optional(
            "value",
            "Its value; $(NAME) refers to another variable.",
            OrNull(Template),
        );
        o.optional("valueFrom", "Not possible here.", Anything);
        let from = o.value("valueFrom").filter(|from| !is_nothing(from));
        Some(Variable {
            name,
            value: value.flatten().unwrap_or_default(),
            from,
        })
    },
};

/// The variables with values of their own.
fn check_env(all: Vec<Variable>, unused: &mut Unused, o: &mut Object<'_>) -> Vec<(String, String)> {
    let mut env = Vec::with_capacity(all.len());
    for variable in all {
        let Some(name) = variable.name else { continue };
        if name.value.is_empty() || name.value.contains(['=', '\0']) {
            let message = format!("{} cannot be a variable's name", quoted(&name.value));
            o.cx.report(name.node.error(message));
        } else if RESERVED.contains(&name.value.as_str()) {
            let message = format!("the variable {} is set for every container", name.value);
            o.cx.report(name.node.error(message).hint("take it out"));
        } else if let Some(from) = variable.from {
            unused.add(from);
        } else {
            env.push((name.value, variable.value));
        }
    }
    env
}

struct Port {
    name: Option<Located<String>>,
    number: Option<Located<u64>>,
}

const PORT: Record<Port> = Record {
    name: "ContainerPort",
    doc: "The port; its name says the protocol.",
    decode: |o| {
        let name = o.optional("name", "h2c, http1 or nothing.", OrNull(WithLocation(Verbatim)));
        let number = Integer { min: 0, max: 65_535 };
        let number = o.optional(
            "containerPort",
            "Not the number here: $PORT is.",
            OrNull(WithLocation(number)),
        );
        o.optional("protocol", "TCP.", OrNull(Choice(&[("TCP", ())])));
        Some(Port {
            name: name.flatten(),
            number: number.flatten(),
        })
    },
};

/// Ports that the containers of Knative have.
const TAKEN: [u64; 5] = [8012, 8013, 8022, 9090, 9091];

fn check_ports(ports: Option<Located<Vec<Port>>>, o: &mut Object<'_>) -> Protocol {
    let Some(ports) = ports else {
        return Protocol::Http1;
    };
    if ports.value.len() > 1 {
        let diagnostic = ports.node.whole().error("a container has one port");
        o.cx.report(diagnostic.hint("keep the one that requests go to"));
    }
    let Some(port) = ports.value.first() else {
        return Protocol::Http1;
    };
    if let Some(number) = port
        .number
        .as_ref()
        .filter(|number| TAKEN.contains(&number.value))
    {
        let message = format!("the port {} is Knative's own", number.value);
        o.cx.report(
            number
                .node
                .error(message)
                .hint("leave containerPort out: the port is told by $PORT"),
        );
    }
    let Some(name) = &port.name else {
        return Protocol::Http1;
    };
    match name.value.as_str() {
        "" | "http1" => Protocol::Http1,
        "h2c" => Protocol::H2c,
        other => {
            let message = format!("the port name {} says no protocol", quoted(other));
            let hint = "write h2c or http1, or leave the name out";
            o.cx.report(name.node.error(message).hint(hint));
            Protocol::Http1
        }
    }
}

/// A probe; `None`: a TCP connect, as without one.
type ProbeAndUnused = (Option<Probe>, Unused);

const PROBE: Record<ProbeAndUnused> = Record {
    name: "KnativeProbe",
    doc: "How readiness is found out.",
    decode: |o| {
        let mut unused = Unused::default();
        let http = o.optional("httpGet", "A GET.", OrNull(HTTP_GET));
        let tcp = o.optional("tcpSocket", "A connect.", OrNull(TCP_SOCKET));
        unused.ask(
            o,
            &[
                "exec",
                "grpc",
                "initialDelaySeconds",
                "terminationGracePeriodSeconds",
            ],
        );
        let count = Integer {
            min: 0,
            max: 1_000_000,
        };
        let period = o.optional(
            "periodSeconds",
            "Between probes while nobody waits.",
            OrNull(Seconds),
        );
        let timeout = o.optional("timeoutSeconds", "For one probe.", OrNull(Seconds));
        let failures = o.optional("failureThreshold", "Failures in a row.", OrNull(count));
        let successes = o.optional("successThreshold", "One is enough.", OrNull(WithLocation(count)));
        o.close();
        if let Some(successes) = successes.flatten().filter(|successes| successes.value > 1) {
            unused.add(successes.node);
        }
        o.only_one_of(&["httpGet", "tcpSocket", "exec", "grpc"]);
        let (http, tcp) = (http.flatten(), tcp.flatten());
        let path = http.map(|(path, of_get)| {
            unused.append(of_get);
            path
        });
        let has_tcp = tcp.is_some();
        if let Some(of_tcp) = tcp {
            unused.append(of_tcp);
        }
        let kind = match path {
            Some(Some(path)) => ProbeKind::Http { path },
            Some(None) => return None,
            None if has_tcp => ProbeKind::Tcp,
            None => return Some((None, unused)),
        };
        let failures = failures.flatten().filter(|failures| *failures > 0);
        let probe = Probe {
            kind,
            period: period
                .flatten()
                .flatten()
                .unwrap_or(std::time::Duration::from_secs(10)),
            timeout: timeout
                .flatten()
                .flatten()
                .unwrap_or(std::time::Duration::from_secs(1)),
            failure_threshold: u32::try_from(failures.unwrap_or(3)).unwrap_or(u32::MAX),
        };
        Some((Some(probe), unused))
    },
};

/// `None` after a mistake.
type PathAndUnused = (Option<String>, Unused);

const HTTP_GET: Record<PathAndUnused> = Record {
    name: "KnativeHttpGet",
    doc: "A GET.",
    decode: |o| {
        let mut unused = Unused::default();
        let path = o.optional("path", "Path and query. Default: /.", OrNull(PROBE_PATH));
        // Nothing but the port that requests go to is listened on.
        o.optional("port", "The port of the container.", Anything);
        unused.ask(o, &["host", "httpHeaders"]);
        o.optional("scheme", "HTTP.", Anything);
        if let Some(scheme) = o.value("scheme")
            && scheme
                .scalar()
                .is_some_and(|scheme| !scheme.text().eq_ignore_ascii_case("http"))
        {
            unused.add(scheme);
        }
        let is_given = o.has("path");
        let path = match path {
            Some(path) => Some(path.unwrap_or_else(|| "/".to_owned())),
            None if is_given => None,
            None => Some("/".to_owned()),
        };
        Some((path, unused))
    },
};

const TCP_SOCKET: Record<Unused> = Record {
    name: "KnativeTcpSocket",
    doc: "A connect.",
    decode: |o| {
        let mut unused = Unused::default();
        o.optional("port", "The port of the container.", Anything);
        unused.ask(o, &["host"]);
        Some(unused)
    },
};
