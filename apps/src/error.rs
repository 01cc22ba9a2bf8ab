//! What the program says when it cannot go on.

/// Each is one sentence that says what is wrong and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The command line or the profile asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// The machine or the network would not have it.
    #[error("{0}")]
    Runtime(String),
}

impl AppError {
    /// 2 for what the user wrote, 1 for what went wrong.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Runtime(_) => 1,
        }
    }

    /// A library's error in the course of setting up or running.
    pub fn runtime(error: impl std::fmt::Display) -> Self {
        Self::Runtime(one_line(&error.to_string()))
    }

    /// A library's error about what the user asked for.
    pub fn usage(error: impl std::fmt::Display) -> Self {
        Self::Usage(one_line(&error.to_string()))
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
