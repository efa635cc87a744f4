//! Why a configuration was refused: a field's path and a sentence.

/// One reason for which a resource, or a bootstrap file, is refused. A compile function collects all it finds, so that an
/// operator sees the whole list at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{message}", path, if path.is_empty() { "" } else { ": " })]
pub struct ConfigError {
    /// Where, in protobuf's names: `filter_chains[0].filters[1].typed_config.stat_prefix`. Empty for the whole resource.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl ConfigError {
    /// An error at a field.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    /// A field that must be there and is not.
    pub fn missing(path: impl Into<String>) -> Self {
        Self::new(path, "is required")
    }

    /// A field, or a value of it, that this proxy does not honour, and so does not accept.
    pub fn unsupported(path: impl Into<String>, what: impl std::fmt::Display) -> Self {
        Self::new(path, format!("{what} is not supported"))
    }

    /// The same error seen from the message that holds the field: `prefix` (which may be empty) goes before the path.
    pub fn at(mut self, prefix: impl std::fmt::Display) -> Self {
        let prefix = prefix.to_string();
        self.path = match self.path.chars().next() {
            _ if prefix.is_empty() => return self,
            None => prefix,
            Some('[') => format!("{prefix}{}", self.path),
            Some(_) => format!("{prefix}.{}", self.path),
        };
        self
    }
}

/// [`ConfigError::at`] for all errors of a list, as `result.map_err(at("filters[0]"))`.
pub fn at(prefix: impl std::fmt::Display) -> impl FnOnce(Vec<ConfigError>) -> Vec<ConfigError> {
    move |errors| errors.into_iter().map(|e| e.at(&prefix)).collect()
}

/// Keeps a part's value, or its errors under `prefix` in `errors`: for compile functions that report every error.
pub fn collect<T>(
    result: Result<T, Vec<ConfigError>>,
    prefix: impl std::fmt::Display,
    errors: &mut Vec<ConfigError>,
) -> Option<T> {
    result.map_err(|e| errors.extend(e.into_iter().map(|e| e.at(&prefix)))).ok()
}

/// One text of many errors, for `error_detail` and for logs.
pub fn join(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl From<ConfigError> for Vec<ConfigError> {
    fn from(error: ConfigError) -> Self {
        vec![error]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_grows_from_the_inside_out() {
        let e = ConfigError::missing("name").at("filters[1]").at("filter_chains[0]");
        assert_eq!(e.to_string(), "filter_chains[0].filters[1].name: is required");
        assert_eq!(ConfigError::new("", "empty").at("listener").to_string(), "listener: empty");
        assert_eq!(ConfigError::new("[2]", "empty").at("domains").path, "domains[2]");
    }
}
