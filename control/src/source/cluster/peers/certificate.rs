//! The certificate of all replicas, by which they authenticate each other: made and renewed by the leader, kept in the
//! Secret `sluice-peer`.
//!
//! It is self-signed and its own trust anchor: who has its key is a replica. No authority stands behind it, since there is
//! one certificate only. Connections outlive its renewal; new ones fail for the moment in which two replicas know
//! different ones, and are tried again.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret as FullSecret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use serde_json::json;
use tokio::sync::mpsc::channel;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::source::cluster::lease::Leader;
use crate::source::cluster::objects::{Secret, SecretData};
use crate::source::cluster::store::Update;
use crate::source::cluster::watch::follow_in;

/// The name of the Secret.
const NAME: &str = "sluice-peer";

/// The name in the certificate, which no replica is reached by.
pub(super) const SERVER_NAME: &str = "sluice-peer";

/// The annotation with the end of the certificate's validity, in RFC 3339.
pub(in crate::source::cluster) const EXPIRES: &str = "sluice.dev/expires";

/// The validity of a certificate, and the part of it that is left when it is renewed, in days.
const DAYS: i64 = 365;
const RENEWED_BEFORE: i64 = 120;

/// The pause between looks at the validity.
const LOOK: Duration = Duration::from_secs(3_600);

/// The pause after a write that failed.
const RETRY: Duration = Duration::from_secs(1);

/// TLS of both sides, by one certificate.
#[derive(Debug, Clone)]
pub(super) struct PeerTls {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl PeerTls {
    /// Reads a certificate and its key in PEM.
    ///
    /// # Errors
    /// What is wrong with them, in one line.
    pub(super) fn of(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|e| text(&e))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| text(&e))?;
        let mut anchors = RootCertStore::empty();
        for certificate in &chain {
            anchors.add(certificate.clone()).map_err(|e| text(&e))?;
        }
        let anchors = Arc::new(anchors);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&anchors), Arc::clone(&provider)).build();
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| text(&e))?
            .with_client_cert_verifier(clients.map_err(|e| text(&e))?)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|e| text(&e))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| text(&e))?
            .with_root_certificates(anchors)
            .with_client_auth_cert(chain, key)
            .map_err(|e| text(&e))?;
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }
}

/// A new certificate.
pub(super) struct Made {
    pub(super) chain: String,
    pub(super) key: String,
    expires: Timestamp,
}

/// Makes a certificate that is valid from a day before, since the clocks of replicas differ.
///
/// # Errors
/// There is no randomness.
pub(super) fn make(now: Timestamp) -> Result<Made, rcgen::Error> {
    let mut params = rcgen::CertificateParams::new([SERVER_NAME.to_owned()])?;
    let day = |days: i64| {
        let at = now.saturating_add(SignedDuration::from_hours(days * 24));
        let at = at.unwrap_or(now);
        (at, at.to_zoned(TimeZone::UTC).date())
    };
    let midnight = |date: Date| {
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    };
    let (expires, _) = day(DAYS);
    params.not_before = midnight(day(-1).1);
    // A day later than said: the certificate ends at midnight.
    params.not_after = midnight(day(DAYS + 1).1);
    let key = rcgen::KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(Made {
        chain: certificate.pem(),
        key: key.serialize_pem(),
        expires,
    })
}

/// What the cluster has.
#[derive(Debug, Clone, Default)]
struct Known {
    is_listed: bool,
    secret: Option<Secret>,
}

impl Known {
    fn tls(&self) -> Option<Result<PeerTls, String>> {
        let SecretData { chain, key } = &self.secret.as_ref()?.data;
        Some(match (chain, key) {
            (Some(chain), Some(key)) => PeerTls::of(&chain.0, &key.0),
            _ => Err("tls.crt or tls.key is missing".to_owned()),
        })
    }

    /// Whether the leader has to write a new one.
    fn is_due(&self, now: Timestamp) -> bool {
        if !self.is_listed {
            return false;
        }
        let annotations = self
            .secret
            .as_ref()
            .and_then(|secret| secret.metadata.annotations.as_ref());
        let expires = annotations.and_then(|all| all.get(EXPIRES));
        let expires: Option<Timestamp> = expires.and_then(|text| text.parse().ok());
        let is_young = expires.is_some_and(|expires| {
            now.saturating_add(SignedDuration::from_hours(RENEWED_BEFORE * 24))
                .is_ok_and(|soon| soon < expires)
        });
        !is_young || !matches!(self.tls(), Some(Ok(_)))
    }
}

/// The task that follows the Secret, and writes it while this replica leads; and TLS by it, `None` before there is one.
pub(super) fn keep(
    client: Client,
    namespace: &str,
    leader: watch::Receiver<Leader>,
) -> (
    impl Future<Output = ()> + Send + use<>,
    watch::Receiver<Option<PeerTls>>,
) {
    let (sender, updates) = channel(1);
    let (tls_sender, tls) = watch::channel(None);
    let (known_sender, known) = watch::channel(Known::default());
    let watched = Api::<Secret>::namespaced(client.clone(), namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let written = Api::<FullSecret>::namespaced(client, namespace);
    let task = async move {
        tokio::join!(
            follow_in(watched, config, sender, std::convert::identity),
            read(updates, known_sender, tls_sender),
            write(written, known, leader),
        );
    };
    (task, tls)
}

async fn read(
    mut updates: tokio::sync::mpsc::Receiver<Update<Secret>>,
    known: watch::Sender<Known>,
    tls: watch::Sender<Option<PeerTls>>,
) {
    while let Some(update) = updates.recv().await {
        let secret = match update {
            Update::Apply(secret) => Some(secret),
            Update::Delete(_) => None,
            Update::List(all) => all.into_iter().next(),
        };
        let now = Known {
            is_listed: true,
            secret,
        };
        match now.tls() {
            Some(Ok(new)) => _ = tls.send_replace(Some(new)),
            Some(Err(error)) => tracing::warn!(%error, "the Secret {NAME} cannot be used"),
            // Deleted: the leader writes another one.
            None => {}
        }
        known.send_replace(now);
    }
}

async fn write(api: Api<FullSecret>, mut known: watch::Receiver<Known>, mut leader: watch::Receiver<Leader>) {
    loop {
        let now = Timestamp::now();
        let seen = known.borrow_and_update().clone();
        let leads = *leader.borrow_and_update() == Leader::Me;
        let mut pause = LOOK;
        if leads && seen.is_due(now) {
            match put(&api, seen.secret.as_ref(), now).await {
                Ok(()) => tracing::info!("the certificate of the replicas was written to the Secret {NAME}"),
                Err(error) => tracing::warn!(%error, "the Secret {NAME} cannot be written"),
            }
            // What was written comes by the watch; else it is tried again.
            pause = RETRY;
        }
        let changed = tokio::select! {
            changed = known.changed() => changed,
            changed = leader.changed() => changed,
            () = sleep(pause) => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn put(api: &Api<FullSecret>, before: Option<&Secret>, now: Timestamp) -> Result<(), String> {
    let Made { chain, key, expires } = make(now).map_err(|e| e.to_string())?;
    let (chain, key) = (ByteString(chain.into_bytes()), ByteString(key.into_bytes()));
    let answer = match before {
        None => {
            let secret = FullSecret {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    annotations: Some([(EXPIRES.to_owned(), expires.to_string())].into()),
                    ..ObjectMeta::default()
                },
                type_: Some("kubernetes.io/tls".to_owned()),
                data: Some([("tls.crt".to_owned(), chain), ("tls.key".to_owned(), key)].into()),
                ..FullSecret::default()
            };
            api.create(&PostParams::default(), &secret).await
        }
        Some(before) => {
            // With its version: what another leader has written meanwhile stays.
            let patch = json!({
                "metadata": {
                    "resourceVersion": before.metadata.resource_version,
                    "annotations": {EXPIRES: expires.to_string()},
                },
                "data": {"tls.crt": chain, "tls.key": key},
            });
            api.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch))
                .await
        }
    };
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(made: &Made, expires: &str) -> Known {
        let data = SecretData {
            chain: Some(ByteString(made.chain.clone().into_bytes())),
            key: Some(ByteString(made.key.clone().into_bytes())),
        };
        Known {
            is_listed: true,
            secret: Some(Secret {
                metadata: ObjectMeta {
                    annotations: Some([(EXPIRES.to_owned(), expires.to_owned())].into()),
                    ..ObjectMeta::default()
                },
                data,
            }),
        }
    }

    #[test]
    fn a_certificate_is_renewed_before_it_ends_and_when_it_cannot_be_used() {
        let now: Timestamp = "2026-02-01T10:00:00Z".parse().unwrap();
        let made = make(now).unwrap();
        assert_eq!(made.expires.to_string(), "2027-02-01T10:00:00Z");
        let expires = made.expires.to_string();
        assert!(!known(&made, &expires).is_due(now));
        let later = |days: i64| now.saturating_add(SignedDuration::from_hours(days * 24)).unwrap();
        assert!(!known(&made, &expires).is_due(later(DAYS - RENEWED_BEFORE - 1)));
        assert!(known(&made, &expires).is_due(later(DAYS - RENEWED_BEFORE + 1)));

        assert!(known(&made, "tomorrow").is_due(now));
        let mut broken = known(&made, &expires);
        broken.secret.as_mut().unwrap().data.key = None;
        assert!(broken.is_due(now));
        let none = Known {
            is_listed: true,
            secret: None,
        };
        assert!(none.is_due(now) && !Known::default().is_due(now));
    }
}
