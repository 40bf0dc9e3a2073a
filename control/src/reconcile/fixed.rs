//! Settings that need a restart: the addresses of admin and health, and the state directory.

use std::fmt::Display;

use sluice_model::Settings;

/// Returns a sentence for each address or directory that differs from the bound one. Listeners are not among them: the data plane can
/// move them.
pub fn fixed_changes(bound: &Settings, next: &Settings) -> Vec<String> {
    let admin = moved("admin", Some(&bound.admin.address), Some(&next.admin.address));
    let health = moved("health", bound.health, next.health);
    let state = match (&bound.state_directory, &next.state_directory) {
        (bound, next) if bound == next => None,
        (Some(bound), _) => Some(format!(
            "state.directory {} was changed: restart to use the new one; the old one is used until then",
            bound.display()
        )),
        (None, _) => {
            Some("state.directory was added: restart to use it; nothing is kept until then".to_owned())
        }
    };
    admin.into_iter().chain(health).chain(state).collect()
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
        let with_state = Settings {
            state_directory: Some("/var/lib/sluice".into()),
            ..bound.clone()
        };
        assert_eq!(
            fixed_changes(&bound, &with_state),
            ["state.directory was added: restart to use it; nothing is kept until then"]
        );
        let removed = fixed_changes(&with_state, &bound);
        assert!(
            removed[0].starts_with("state.directory /var/lib/sluice was changed"),
            "{removed:?}"
        );
    }
}
