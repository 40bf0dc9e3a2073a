//! Namespace and name of an object of a cluster.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Namespace and name of an object. Clones share the text: a gateway knows each object by its name in a dozen places, for
/// each object of the cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct ObjectName {
    /// `namespace/name`: neither can have a slash.
    text: Arc<str>,
    /// The length of the namespace.
    namespace: usize,
}

impl ObjectName {
    /// The name of the object in this namespace, which is empty for objects that are in none.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            text: Arc::from(format!("{namespace}/{name}")),
            namespace: namespace.len(),
        }
    }

    /// The name of this object.
    #[cfg(feature = "cluster")]
    pub fn of(object: &impl kube::Resource) -> Self {
        let meta = object.meta();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        Self::new(namespace, meta.name.as_deref().unwrap_or_default())
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.text[..self.namespace]
    }

    /// The name in the namespace.
    pub fn name(&self) -> &str {
        &self.text[self.namespace + 1..]
    }
}

/// By the namespace, then by the name.
impl Ord for ObjectName {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.namespace(), self.name()).cmp(&(other.namespace(), other.name()))
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for ObjectName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// `namespace/name`, as logs, conditions and kubectl have it.
impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_by_the_namespace_first() {
        // As texts they were the other way round: '-' is less than '/'.
        let (short, long) = (ObjectName::new("a", "z"), ObjectName::new("a-b", "a"));
        assert!(short < long);
        assert!(long.to_string() < short.to_string());
        assert_eq!((long.namespace(), long.name()), ("a-b", "a"));
        assert_eq!(ObjectName::new("", "n").to_string(), "/n");
    }
}
