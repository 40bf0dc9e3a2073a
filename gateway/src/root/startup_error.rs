//! The errors that end `sluice run` before it serves.

/// Why the gateway cannot run, with the exit code of the process.
pub(super) struct StartupError {
    pub(super) code: u8,
    pub(super) message: String,
}

impl StartupError {
    /// The configuration was rejected.
    pub(super) fn rejected(message: impl ToString) -> Self {
        Self {
            code: 1,
            message: message.to_string(),
        }
    }

    /// Binding, threads or the hand-over failed.
    pub(super) fn start(message: impl ToString) -> Self {
        Self {
            code: 2,
            message: message.to_string(),
        }
    }
}
