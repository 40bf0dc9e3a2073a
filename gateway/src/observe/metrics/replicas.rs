//! Metrics of the replicas that slots are shared with.

use super::exposition::Exposition;
use super::families::{REPLICA_CONNECTED, REPLICA_HOLDS};
use crate::replicas::ReplicaStatus;

/// Writes whether each replica is connected, and the slots that it holds of this one's.
pub(super) fn expose(out: &mut Exposition, replicas: &[ReplicaStatus]) {
    let mut connected = out.family(&REPLICA_CONNECTED);
    for replica in replicas {
        let name = &replica.name;
        connected.sample(format_args!("replica=\"{name}\""), u8::from(replica.is_connected));
    }
    let mut holds = out.family(&REPLICA_HOLDS);
    for replica in replicas {
        let name = &replica.name;
        holds.sample(format_args!("replica=\"{name}\""), replica.holds);
    }
}
