//! What calls to the control plane say about who we are.

use std::path::PathBuf;

use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

/// What every stream says about who we are, beside the node.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// A file with a bearer token, read anew for each stream because tokens expire and are replaced.
    pub token: Option<PathBuf>,
    /// Metadata sent as it is, such as `clusterid`.
    pub headers: Vec<(String, String)>,
}

/// Credentials that cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The token's file cannot be read, or holds none.
    #[error("the token file {path}: {reason}")]
    Token {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A header that gRPC metadata cannot carry.
    #[error("metadata {0:?} is not valid")]
    Metadata(String),
}

impl Credentials {
    /// The metadata of a call; the token's file is read now.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn metadata(&self) -> Result<MetadataMap, CredentialsError> {
        let mut metadata = self.headers()?;
        if let Some(path) = &self.token {
            let bad = |reason: String| CredentialsError::Token { path: path.display().to_string(), reason };
            let token = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
            let value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
                .parse()
                .map_err(|_| bad("holds characters that no token has".into()))?;
            metadata.insert("authorization", value);
        }
        Ok(metadata)
    }

    /// The same, for a caller that also shows its certificate: a token that is not there, or no more, is no hindrance.
    ///
    /// # Errors
    /// [`CredentialsError::Metadata`].
    pub fn metadata_beside_certificate(&self) -> Result<MetadataMap, CredentialsError> {
        match self.metadata() {
            Err(CredentialsError::Token { .. }) => self.headers(),
            other => other,
        }
    }

    fn headers(&self) -> Result<MetadataMap, CredentialsError> {
        let mut metadata = MetadataMap::new();
        for (name, value) in &self.headers {
            let bad = || CredentialsError::Metadata(name.clone());
            let key: MetadataKey<Ascii> = name.to_ascii_lowercase().parse().map_err(|_| bad())?;
            metadata.insert(key, value.parse().map_err(|_| bad())?);
        }
        Ok(metadata)
    }
}
