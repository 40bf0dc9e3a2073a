//! Settings that need a restart: the addresses of admin and health.

use std::fmt::Display;

use sluice_model::Settings;

/// Returns a sentence for each address that differs from the bound one. Listeners are not among them: the data plane can
/// move them.
pub fn fixed_changes(bound: &Settings, next: &Settings) -> Vec<String> {
    let admin = moved("admin", Some(&bound.admin.address), Some(&next.admin.address));
    let health = moved("health", bound.health, next.health);
    admin.into_iter().chain(health).collect()
}

fn moved<A: Display + PartialEq>(what: &str, bound: Option<A>, next: Option<A>) -> Option<String> {
    if bound == next {
        return None;
    }
    Some(match (bound, next) {
        (Some(bound), Some(next)) => {
            format!("{what} address {bound} was changed to {next}: restart to move it; {bound} still serves")
        }
        (Some(bound), None) => {
            format!("{what} address {bound} was removed: restart to close it; it still serves")
        }
        (None, Some(next)) => {
            format!("{what} address {next} was added: restart to open it; nothing listens there yet")
        }
        (None, None) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::tests::settings;

    #[test]
    fn addresses_are_fixed_and_it_is_said() {
        let bound = settings("localhost");
        assert_eq!(fixed_changes(&bound, &settings("example.com")), [""; 0]);
        let mut next = bound.clone();
        next.admin.address = "127.0.0.1:9999".parse().unwrap();
        // Neither needs a restart.
        next.admin.token = Some(sluice_model::Secret::new("t"));
        next.admin.hosts = vec!["a".into()];
        next.health = Some("127.0.0.1:9901".parse().unwrap());
        assert_eq!(
            fixed_changes(&bound, &next),
            [
                "admin address 127.0.0.1:0 was changed to 127.0.0.1:9999: restart to move it; \
                 127.0.0.1:0 still serves",
                "health address 127.0.0.1:9901 was added: restart to open it; nothing listens there yet",
            ]
        );
        assert_eq!(
            fixed_changes(
                &next,
                &Settings {
                    health: None,
                    ..next.clone()
                }
            ),
            ["health address 127.0.0.1:9901 was removed: restart to close it; it still serves"]
        );
    }
}
