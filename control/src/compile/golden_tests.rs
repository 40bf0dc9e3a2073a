//! One small configuration for each kind of mistake: what is told, where, and nothing besides.

use super::*;

/// Each case: the text, and the diagnostics as `line:column message`.
fn check(cases: &[(&str, &[&str])]) {
    let mut wrong = Vec::new();
    for (text, want) in cases {
        let file = SourceFile {
            path: "f.yaml".into(),
            text: (*text).to_owned(),
        };
        let got: Vec<String> = match load(&[file], &|_| None) {
            Ok(compiled) => compiled.warnings.items().iter().map(brief).collect(),
            Err(diagnostics) => diagnostics.items().iter().map(brief).collect(),
        };
        if got != *want {
            wrong.push(format!("{text}\n  want {want:#?}\n  got {got:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn brief(d: &Diagnostic) -> String {
    let warning = if d.severity == crate::config::Severity::Warning {
        "warning: "
    } else {
        ""
    };
    format!("{}:{} {warning}{}", d.location.line, d.location.column, d.message)
}

#[test]
fn form() {
    check(&[
        ("- a\n- b", &["1:1 expected a mapping, found a list"]),
        (
            "just text",
            &["1:1 expected a mapping, found the text 'just text'"],
        ),
        ("# nothing\n", &[]),
        ("services: []", &[]),
        ("services:\n", &["1:1 expected a list, found nothing"]),
        (
            "tagHeader: yes",
            &["1:12 expected true or false, found the text 'yes'"],
        ),
        (
            "tagHeader: \"true\"",
            &["1:12 expected true or false, found the text 'true'"],
        ),
        ("domain: [a]", &["1:9 expected a domain, found a list"]),
        ("domain: !x a", &["1:12 the tag '!x' means nothing here"]),
        ("? [a]\n: b\n", &["1:3 a list or mapping cannot be a key"]),
        (
            "tagHeader: true\ntagHeader: true",
            &["2:1 the key 'tagHeader' is repeated"],
        ),
        (
            "drain: {delay: 5}",
            &["1:16 expected a duration such as 250ms, 10s, 5m or 1h, found the number '5'"],
        ),
        (
            "queue: {bytes: 1GB}",
            &["1:16 expected a size such as 64KiB, 1GiB or a number of bytes, found the text '1GB'"],
        ),
        (
            "limits: {maxHeaders: 0}",
            &["1:22 '0' is not between 1 and 10000"],
        ),
        (
            "limits: {maxHeaders: 1.5}",
            &["1:22 expected a whole number, found the number '1.5'"],
        ),
        ("limits: {max-headers: 5}", &["1:10 unknown key 'max-headers'"]),
        ("domain: ${A}", &["1:9 the variable A is not set"]),
        ("domain: ${A", &["1:9 '${' is not closed"]),
    ]);
}

#[test]
fn gateway() {
    check(&[
        ("listeners: []", &["1:1 there is no listener"]),
        ("listeners: [{}]", &["1:13 the key 'address' is missing"]),
        (
            "listeners: [{adress: '1.2.3.4:5'}]",
            &["1:14 unknown key 'adress'"],
        ),
        (
            "listeners: [{address: ':80'}]",
            &["1:23 ':80' is not an address with a port: the address is missing"],
        ),
        (
            "listeners: [{address: 8080}]",
            &["1:23 '8080' is not an address with a port: the address is missing"],
        ),
        (
            "listeners: [{address: '127.0.0.1:9900'}]",
            &["1:23 127.0.0.1:9900 is taken twice: admin is there too"],
        ),
        (
            "listeners: [{address: '127.0.0.1:0'}, {address: '127.0.0.1:0'}]",
            &[],
        ),
        ("health: {}", &["1:1 the key 'address' is missing"]),
        (
            "listeners: [{address: '[::]:443', tls: {}}]",
            &["1:35 the key 'certificates' is missing"],
        ),
        (
            "listeners: [{address: '[::]:443', tls: {certificates: []}}]",
            &["1:41 tls needs at least one certificate"],
        ),
        (
            "listeners: [{address: '[::]:443', tls: {certificates: [{certFile: a}]}}]",
            &["1:56 the key 'keyFile' is missing"],
        ),
        (
            "listeners: [{address: '[::]:443', tls: {certificates: [{certFile: a, keyFile: b}], minVersion: 1.1, cipherSuites: [TLS_AES_128_GCM_SHA265]}}]",
            &[
                "1:96 expected one of 1.2, 1.3, found the number '1.1'",
                "1:116 expected a cipher suite's name, found the text 'TLS_AES_128_GCM_SHA265'",
            ],
        ),
        (
            "listeners: [{address: '[::]:443', tls: {certificates: [{certFile: a, keyFile: b}], minVersion: '1.3', cipherSuites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]}}]",
            &["1:103 there is no cipher suite that minVersion allows"],
        ),
        (
            "listeners: [{address: '[::]:80', proxyProtocol: {mode: always, from: [10.0.0.0/33]}}]",
            &[
                "1:56 expected one of optional, required, found the text 'always'",
                "1:71 '10.0.0.0/33' is not a network: it cannot be read",
            ],
        ),
        ("listeners: [{address: '[::]:80', http2: {webSocket: true}}]", &[]),
        (
            "listeners: [{address: '[::]:80', http2: {webSockets: 1}}]",
            &["1:42 unknown key 'webSockets'"],
        ),
        ("limits: {maxHops: 3}", &[]),
        ("limits: {maxHops: 0}", &["1:19 '0' is not between 1 and 1000"]),
        ("trustedProxies: [10.0.0.0/8, fd00::/8, 10.1.2.3]", &[]),
        (
            "trustedProxies: [ten]",
            &["1:18 'ten' is not a network: it cannot be read"],
        ),
        (
            "processes: {ports: 20-10}",
            &["1:20 '20-10' is not a range of ports: its first port is above its last"],
        ),
        (
            "processes: {ports: 20-21}",
            &["1:20 warning: there are 2 ports for up to 64 instances"],
        ),
        (
            "accessLog: {format: jsn}",
            &["1:21 expected one of pretty, json, off, found the text 'jsn'"],
        ),
        ("accessLog: {format: off}", &[]),
        (
            "autoscaling: {minScale: 5, maxScale: 2}",
            &["1:25 minScale 5 is above maxScale 2"],
        ),
        (
            "autoscaling: {stableWindow: 5s}",
            &["1:29 '5s' is not between 6s and 1h"],
        ),
        (
            "autoscaling: {stableWindow: 6500ms}",
            &["1:29 '6500ms' is not a whole number of seconds"],
        ),
        (
            "autoscaling: {maxScaleUpRate: 1}",
            &["1:31 '1' is not between 1.000001 and 1000000000"],
        ),
        ("autoscaling: {targetBurstCapacity: -1}", &[]),
        (
            "autoscaling: {targetBurstCapacity: -2}",
            &["1:36 '-2' is not between 0 (or -1) and 1000000000"],
        ),
    ]);
}

#[test]
fn services() {
    check(&[
        (
            "services: [{}]",
            &[
                "1:12 the key 'name' is missing",
                "1:12 the service has no revisions",
            ],
        ),
        (
            "services: [{name: A, endpoints: ['h:1']}]",
            &["1:19 'A' is not a name: the character 'A' is not allowed"],
        ),
        (
            "services: [{name: 5, endpoints: ['h:1']}]",
            &["1:19 '5' is not a name: YAML reads it as a number"],
        ),
        ("services: [{name: \"5\", endpoints: ['h:1']}]", &[]),
        (
            "services:\n- name: a\n  revisions: []\n",
            &["2:3 the service has no revisions"],
        ),
        (
            "services: [{name: a, endpoints: ['h:1'], revisions: [{name: b, endpoints: ['h:1']}]}]",
            &["1:22 'endpoints' stands beside 'revisions'"],
        ),
        (
            "services: [{name: a, endpoints: ['h:1'], url: 'http://h'}]",
            &["1:42 'endpoints' and 'url' exclude each other"],
        ),
        (
            "services: [{name: a, hosts: [x, X], endpoints: ['h:1']}]",
            &["1:33 the host 'x' is listed twice"],
        ),
        (
            "services: [{name: a, hosts: ['*', 'a.*.b', 'x:80', 'http://x', 'a..b'], endpoints: ['h:1']}]",
            &[
                "1:30 '*' is not a host: '*' stands for whole labels at the start only",
                "1:35 'a.*.b' is not a host: '*' stands for whole labels at the start only",
                "1:44 'x:80' is not a host: it has a port",
                "1:52 'http://x' is not a host: it is a URL",
                "1:64 'a..b' is not a host: it has an empty label, or one that starts or ends with '-'",
            ],
        ),
        (
            "services:\n- {name: a, hosts: [x.test], endpoints: ['h:1'], traffic: [{latestRevision: true, percent: 100, tag: t}]}\n- {name: b, hosts: [x.test], endpoints: ['h:1'], traffic: [{latestRevision: true, percent: 100, tag: t}]}\n",
            &["3:21 the host 'x.test' is already claimed by service default/a"],
        ),
        (
            "services:\n- {name: a, endpoints: ['h:1'], traffic: [{latestRevision: true, percent: 100, tag: t}]}\n- {name: t-a, endpoints: ['h:1']}\n",
            &["3:10 the host 't-a.default.localhost' is already claimed by tag 't' of service default/a"],
        ),
        (
            "services: [{name: a, hosts: [a.default.localhost], endpoints: ['h:1']}]",
            &[],
        ),
        (
            "services: [{name: a, visibility: internal, endpoints: ['h:1']}]",
            &["1:12 warning: no listener serves this internal service"],
        ),
        (
            "services: [{name: a, sticky: {}, endpoints: ['h:1']}]",
            &["1:22 nothing says what is sticky"],
        ),
        (
            "services: [{name: a, sticky: {cookie: a b, header: 'x:y'}, endpoints: ['h:1']}]",
            &[
                "1:39 'a b' is not a cookie name: it holds a character that cookie names cannot have",
                "1:44 'cookie' and 'header' exclude each other",
                "1:52 'x:y' is not a header name: 'x:y' cannot be a header name",
            ],
        ),
        (
            "services: [{name: a, endpoints: ['h:1'], routes: [{match: {path: {prefix: v2, exact: /x}, headers: {'a b': {present: true}, c: {present: false}}, methods: [get]}}]}]",
            &[
                "1:75 'v2' is not a path: it does not start with '/'",
                "1:79 'prefix' and 'exact' exclude each other",
                "1:101 'a b' cannot be a header name",
                "1:138 only the presence of a header can be matched",
                "1:157 'get' is not a method: methods are written in upper case",
            ],
        ),
        (
            "services: [{name: a, endpoints: ['h:1'], routes: [{appendHeaders: {Host: x, Content-Length: 5, X: \"a\\nb\"}, rewriteHost: 'a b'}]}]",
            &[
                "1:68 the header 'Host' is not set here: use rewriteHost in a route, or a url backend",
                "1:77 the header 'Content-Length' belongs to the connection and cannot be set",
                "1:99 a header value cannot hold line breaks or other control characters",
                "1:121 'a b' is not a host: the character ' ' is not allowed",
            ],
        ),
    ]);
}

#[test]
fn traffic() {
    let with = |traffic: &str| {
        format!(
            "services:\n- name: s\n  revisions: [{{name: a, endpoints: ['h:1']}}, {{name: b, endpoints: ['h:2']}}]\n  traffic: {traffic}\n"
        )
    };
    let cases: Vec<(String, &[&str])> = vec![
        (with("[]"), &["4:3 percents add up to 0, not to 100"]),
        (
            with("[{revisionName: a, percent: 33.33}, {revisionName: b, percent: 66.67}]"),
            &[],
        ),
        (
            with("[{revisionName: a, percent: 33.333}, {revisionName: b, percent: 66.67}]"),
            &["4:40 '33.333' has more than two decimals"],
        ),
        (
            with("[{revisionName: a, percent: 50}, {revisionName: b, percent: 51}]"),
            &["4:3 percents add up to 101, not to 100"],
        ),
        (
            with("[{revisionName: a, percent: 101}, {revisionName: b, percent: -1}]"),
            &[
                "4:40 '101' is not between 0 and 100",
                "4:73 '-1' is not between 0 and 100",
            ],
        ),
        (
            with("[{revisionName: a, percent: 50%}, {revisionName: b, percent: '50'}]"),
            &[
                "4:40 expected a percentage, found the text '50%'",
                "4:73 expected a percentage, found the text '50'",
            ],
        ),
        (with("[{percent: 100}]"), &["4:13 the target names no revision"]),
        (
            with("[{revisionNme: a, percent: 100}]"),
            &["4:14 unknown key 'revisionNme'"],
        ),
        (
            with("[{revisionName: a, latestRevision: false}]"),
            &["4:13 the target has neither percent nor tag"],
        ),
        (
            with("[{revisionName: a, percnt: 100}]"),
            &["4:31 unknown key 'percnt'"],
        ),
        (
            with("[{revisionName: c, percent: 100}]"),
            &["4:28 no revision of this service is named 'c'"],
        ),
        (
            with("[{revisionName: a, latestRevision: true, percent: 100}]"),
            &["4:28 'a' is not the latest revision, the last one listed"],
        ),
        (with("[{configurationName: s, percent: 100}]"), &[]),
        (
            with("[{configurationName: t, percent: 100}]"),
            &["4:33 the configuration 't' is not this service's"],
        ),
        (
            with("[{revisionName: a, percent: 100, tag: A}]"),
            &["4:50 'A' is not a tag: the character 'A' is not allowed"],
        ),
        (
            with(
                "[{revisionName: a, percent: 100}]\n  routes: [{traffic: [{revisionName: b, percent: 100, tag: t}]}]",
            ),
            &["5:60 a route's traffic has no tags"],
        ),
    ];
    let cases: Vec<(&str, &[&str])> = cases.iter().map(|(text, want)| (text.as_str(), *want)).collect();
    check(&cases);
    check(&[
        (
            "services:\n- {name: s, revisions: [{name: a, endpoints: ['h:1']}]}\n- {name: t, revisions: [{name: a, endpoints: ['h:1']}]}\n",
            &["3:32 revision name 'a' is taken in this namespace"],
        ),
        (
            "services:\n- {name: s, revisions: [{name: a, endpoints: ['h:1']}]}\n- {name: t, namespace: other, revisions: [{name: a, endpoints: ['h:1']}]}\n",
            &[],
        ),
        (
            "services:\n- {name: s, revisions: [{name: a, endpoints: ['h:1']}]}\n- {name: t, revisions: [{name: b, endpoints: ['h:1']}], traffic: [{revisionName: a, percent: 100}]}\n",
            &["3:82 no revision of this service is named 'a'"],
        ),
        // A revision whose name is a mistake may be the one that is meant.
        (
            "services:\n- {name: s, revisions: [{name: A, endpoints: ['h:1']}], traffic: [{revisionName: a, percent: 100}]}\n",
            &["2:32 'A' is not a name: the character 'A' is not allowed"],
        ),
    ]);
}

#[test]
fn revisions() {
    let with = |keys: &str| format!("services:\n- name: s\n  revisions:\n  - name: a\n    {keys}\n");
    let cases: Vec<(String, &[&str])> = vec![
        (with("protocol: h2c"), &["4:5 the revision has no backend"]),
        (with("endpoint: ['h:1']"), &["5:5 unknown key 'endpoint'"]),
        (with("endpoints: []"), &["5:5 the list of endpoints is empty"]),
        (
            with("endpoints: ['h:1', 'h:1']"),
            &["5:24 the endpoint 'h:1' is listed twice"],
        ),
        (
            with("endpoints: [h, '::1:80', 'h:0', 'h:x', 'http://h', 'unix:', '[::1]:80', 'a b:1']"),
            &[
                "5:17 'h' is not an endpoint: the port is missing",
                "5:20 '::1:80' is not an endpoint: an IPv6 address needs brackets",
                "5:30 'h:0' is not an endpoint: its port is not a number from 1 to 65535",
                "5:37 'h:x' is not an endpoint: its port is not a number from 1 to 65535",
                "5:44 'http://h' is not an endpoint: it is a URL",
                "5:56 'unix:' is not an endpoint: the socket's path is missing",
                "5:77 'a b:1' is not an endpoint: the character ' ' is not allowed",
            ],
        ),
        (
            with("url: ftp://h"),
            &["5:10 'ftp://h' is not a URL: its scheme is neither http nor https"],
        ),
        (with("url: h"), &["5:10 'h' is not a URL: its scheme is missing"]),
        (
            with("url: https://u:p@h"),
            &["5:10 'https://u:p@h' is not a URL: credentials in a URL are not sent"],
        ),
        (
            with("url: https://h:99999"),
            &["5:10 'https://h:99999' is not a URL: its port is not a number up to 65535"],
        ),
        (
            with("url: https://h/?q"),
            &["5:10 'https://h/?q' is not a URL: a backend's URL has no query and no fragment"],
        ),
        (
            with("url: https://h\n    protocol: h2c"),
            &["6:5 h2c is HTTP/2 without TLS, but the url is https"],
        ),
        (with("url: http://h:1/p/\n    protocol: h2c"), &[]),
        (
            with("url: https://h\n    protocol: h2\n    maxStreamsPerConnection: 10"),
            &[],
        ),
        (
            with("url: http://h\n    protocol: h2"),
            &["6:5 h2 is HTTP/2 over TLS, but the backend is no https url"],
        ),
        (
            with("endpoints: ['h:1']\n    protocol: h2"),
            &["6:5 h2 is HTTP/2 over TLS, but the backend is no https url"],
        ),
        (with("endpoints: ['h:1']\n    maxStreamsPerConnection: 10"), &[]),
        (
            with("url: https://h\n    protocol: h2\n    maxStreamsPerConnection: 0"),
            &["7:30 '0' is not between 1 and 10000"],
        ),
        (
            with("url: https://h\n    tls: {caFile: a, certFile: b, keyFile: c, serverName: x.internal}"),
            &[],
        ),
        (
            with("url: http://h\n    tls: {caFile: a}"),
            &["6:5 'tls' goes with an https url only"],
        ),
        (
            with("url: https://h\n    tls: {certFile: b}"),
            &["6:11 'certFile' stands without 'keyFile'"],
        ),
        (
            with("url: https://h\n    tls: {serverName: 'x:1'}"),
            &["6:23 'x:1' is not a server name: it is more than a name"],
        ),
        (with("url: https://h\n    tls: {serverName: '::1'}"), &[]),
        (
            with("url: https://h\n    tls: {insecureSkipVerify: true, caFile: a}"),
            &[
                "6:11 warning: the backend's certificate is not verified",
                "6:37 warning: caFile has no effect with insecureSkipVerify",
            ],
        ),
        (
            with("url: http://h\n    process: {command: [x]}"),
            &["6:5 'url' and 'process' exclude each other"],
        ),
        (
            with("url: http://h\n    activation: {webhook: {url: 'http://h'}}"),
            &["6:5 'activation' goes with endpoints, or stands alone"],
        ),
        (with("activation: {webhook: {url: 'http://h'}}"), &[]),
        (with("activation: {}"), &["5:5 the key 'webhook' is missing"]),
        (with("process: {}"), &["5:5 the key 'command' is missing"]),
        (with("process: {command: []}"), &["5:15 the command is empty"]),
        (
            with("process: {command: run it}"),
            &["5:24 expected a list, found the text 'run it'"],
        ),
        (
            with("process: {command: [a], env: {'A=B': c}}"),
            &["5:35 'A=B' cannot be a variable's name"],
        ),
        (with("process: {command: [a, 5, true], env: {A: 5, B: }}"), &[]),
        (
            with("process: {command: [a]}\n    protocol: http2"),
            &["6:15 expected one of http1, h2c, h2, found the text 'http2'"],
        ),
        (
            with("process: {command: [a]}\n    timeoutSeconds: 10s"),
            &["6:21 expected a number of seconds, found the text '10s'"],
        ),
        (
            with("process: {command: [a]}\n    queue: {timeout: 0s}"),
            &["6:22 '0s' is not between 1ms and 8760h"],
        ),
        (
            with("process: {command: [a]}\n    readinessProbe: {httpGet: {path: x}, tcpSocket: {}}"),
            &[
                "6:38 'x' is not a path: it does not start with '/'",
                "6:42 'httpGet' and 'tcpSocket' exclude each other",
            ],
        ),
        (
            with(
                "process: {command: [a]}\n    autoscaling: {window: 5s, metric: cpu, target: 0, panicThresholdPercentage: 100}",
            ),
            &[
                "6:27 '5s' is not between 6s and 1h",
                "6:39 expected one of concurrency, rps, found the text 'cpu'",
                "6:52 '0' is not between 0.01 and 1000000000",
                "6:81 '100' is not between 110 and 1000",
            ],
        ),
        (
            with("process: {command: [a]}\n    autoscaling: {maxScale: 3, activationScale: 4}"),
            &["6:5 activationScale 4 is above maxScale 3"],
        ),
        (
            with("process: {command: [a]}\n    autoscaling: {minScale: 3}\nautoscaling: {maxScale: 2}"),
            &["6:5 minScale 3 is above maxScale 2"],
        ),
        (
            with("endpoints: ['h:1']\n    autoscaling: {minScale: 3}"),
            &["6:5 warning: autoscaling is ignored: nothing starts instances"],
        ),
    ];
    let cases: Vec<(&str, &[&str])> = cases.iter().map(|(text, want)| (text.as_str(), *want)).collect();
    check(&cases);
}
