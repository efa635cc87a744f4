//! Tokens for one use (`weft token create --once`): each gets one certificate, and whoever shows it again with another key is
//! refused. What was used is remembered in the state directory until the token has expired by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::store::{self, StoreError};
use super::token::{Once, TokenError};

/// Its file in the state directory.
const FILE: &str = "used-tokens.json";

/// A token that was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Use {
    /// The SHA-256 of the key that it got a certificate for.
    key: String,
    /// It expires then, in seconds since 1970.
    until: u64,
}

/// The memory.
#[derive(Debug, Default)]
pub struct Used {
    directory: Option<PathBuf>,
    all: Mutex<BTreeMap<String, Use>>,
}

impl Used {
    /// What was used before, by a state directory's file.
    ///
    /// # Errors
    /// The file is there and cannot be used: nobody knows then what was used.
    pub fn open(directory: Option<&Path>) -> Result<Self, StoreError> {
        let Some(directory) = directory else { return Ok(Self::default()) };
        let path = directory.join(FILE);
        let all = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| StoreError::Corrupt {
                path,
                what: format!("is not a list of used tokens ({e}); without it, tokens for one use that have not expired could be used again"),
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        Ok(Self { directory: Some(directory.to_owned()), all: Mutex::new(all) })
    }

    /// Uses a token up for a key (SHA-256), at `now` (since 1970). Who asks again for the same key is the same one: an answer may
    /// have been lost.
    ///
    /// # Errors
    /// It was used for another key, or that it is used cannot be written down.
    pub fn take(&self, token: &Once, key: &str, now: u64) -> Result<(), TokenError> {
        let mut all = self.all.lock();
        if let Some(used) = all.get(&token.id) {
            return if used.key == key { Ok(()) } else { Err(TokenError::Used) };
        }
        let before = all.clone();
        all.retain(|_, used| used.until >= now);
        all.insert(token.id.clone(), Use { key: key.to_owned(), until: token.until });
        let Some(directory) = &self.directory else { return Ok(()) };
        let text = serde_json::to_string(&*all).unwrap_or_default();
        store::write(directory, FILE, &text).map_err(|error| {
            *all = before;
            TokenError::Unchecked(error.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_used_once_also_over_a_restart_and_forgotten_when_it_has_expired() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Used::open(Some(directory.path())).unwrap();
        let one = Once { id: "one".to_owned(), until: 100 };
        open().take(&one, "key", 10).unwrap();
        open().take(&one, "key", 20).unwrap();
        assert_eq!(open().take(&one, "another", 30), Err(TokenError::Used));
        open().take(&Once { id: "two".to_owned(), until: 300 }, "key", 200).unwrap();
        assert_eq!(open().all.lock().keys().collect::<Vec<_>>(), ["two"]);
        // What cannot be written down is not used up.
        let used = open();
        std::fs::remove_file(directory.path().join(FILE)).unwrap();
        std::fs::create_dir(directory.path().join(FILE)).unwrap();
        let three = Once { id: "three".to_owned(), until: 300 };
        assert!(matches!(used.take(&three, "key", 200), Err(TokenError::Unchecked(_))));
        assert!(!used.all.lock().contains_key("three"));
        std::fs::remove_dir(directory.path().join(FILE)).unwrap();
        std::fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(Used::open(Some(directory.path())).unwrap_err().to_string().contains(FILE));
    }
}
