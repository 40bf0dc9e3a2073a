use super::*;

fn outcomes(requests: u64, failures: u64, latency: &[(u16, u64)]) -> Outcomes {
    Outcomes {
        requests,
        failures,
        latency: latency.to_vec(),
        ready: 3,
        endpoints: 4,
    }
}

#[test]
fn what_was_counted_since_the_last_look() {
    let before = outcomes(10, 1, &[(2, 5), (7, 5)]);
    let now = outcomes(30, 3, &[(2, 5), (4, 12), (7, 13)]);
    let side = since(&now, &before);
    assert_eq!((side.requests, side.failures, side.ready), (20, 2, 3));
    assert_eq!(side.latency, [(4, 12), (7, 8)]);
    assert_eq!(since(&now, &now).latency, []);
    // The revision was removed and came back.
    let anew = outcomes(4, 1, &[(4, 4)]);
    let side = since(&anew, &now);
    assert_eq!((side.requests, side.failures, side.latency), (4, 1, vec![(4, 4)]));
}
