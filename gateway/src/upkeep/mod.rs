//! Background upkeep of revisions.
