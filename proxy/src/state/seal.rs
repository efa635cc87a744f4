//! The seal of what a proxy keeps: an authentication code by a key of this proxy's own, so that a file that somebody has edited,
//! or put back from earlier, is not taken for what the control plane said.
//!
//! The key is in a file of its own (0600), made at the first use; beside it stands which state was the last. Where it is in another
//! place than the state (`--state-key`), whoever can write the state cannot seal it.

use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::io::file::replace_private;

/// Bytes of a key.
const LENGTH: usize = 32;

/// A seal that is not right, in words.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key's file cannot be used.
    #[error("the key {path} cannot be used ({reason})")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The code is not by the key.
    #[error("it is not as this proxy wrote it: its code is not by the key {0}")]
    Broken(PathBuf),
    /// It is older than the last one.
    #[error("it is older than what this proxy kept last: somebody has put it back")]
    Old,
}

/// Key and number of the last state, in a file.
#[derive(Clone, Debug)]
pub struct Seal {
    path: PathBuf,
    /// The file is ours to replace when it cannot be used.
    own: bool,
}

struct Opened {
    text: Zeroizing<String>,
    key: hmac::Key,
    last: u64,
}

impl Seal {
    /// With a key of the proxy's own in this file.
    pub fn own(path: &Path) -> Self {
        Self { path: path.to_owned(), own: true }
    }

    /// With a key that an operator keeps in this file: it is made where there is none, and never replaced by another.
    pub fn given(path: &Path) -> Self {
        Self { path: path.to_owned(), own: false }
    }

    /// Holds a state against its code (hexadecimal); `number` is what the state says of itself.
    ///
    /// # Errors
    /// [`SealError`]: the state is not to be used.
    pub fn check(&self, body: &[u8], code: &[u8]) -> Result<Checked, SealError> {
        let opened = match self.open() {
            Ok(Some(opened)) => opened,
            Ok(None) => return Err(self.key_error("it is not there")),
            Err(error) => return Err(error),
        };
        let broken = || SealError::Broken(self.path.clone());
        let code = unhex(code).ok_or_else(broken)?;
        hmac::verify(&opened.key, body, &code).map_err(|_| broken())?;
        Ok(Checked { last: opened.last })
    }

    /// The code (hexadecimal) of a state. Makes the key where there is none, or none that can be used.
    ///
    /// # Errors
    /// [`SealError::Key`]: nothing can be sealed.
    pub fn code(&self, body: &[u8]) -> Result<String, SealError> {
        let opened = match self.open() {
            Ok(Some(opened)) => opened,
            Ok(None) => self.make()?,
            // Whatever it sealed can be used no more; the next one can.
            Err(_) if self.own => self.make()?,
            Err(error) => return Err(error),
        };
        Ok(hex(hmac::sign(&opened.key, body).as_ref()))
    }

    /// The number that the next state is to have.
    ///
    /// # Errors
    /// [`SealError::Key`].
    pub fn next(&self) -> Result<u64, SealError> {
        Ok(self.open().ok().flatten().map_or(0, |opened| opened.last) + 1)
    }

    /// Remembers the number of the state that was kept last. Not possible where the key may only be read.
    ///
    /// # Errors
    /// [`SealError::Key`].
    pub fn remember(&self, number: u64) -> Result<(), SealError> {
        let Some(opened) = self.open()? else { return Err(self.key_error("it is not there")) };
        let key = opened.text.lines().next().unwrap_or_default();
        self.write(key, number)
    }

    fn open(&self) -> Result<Option<Opened>, SealError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.key_error(&e)),
        };
        let mut lines = text.lines();
        let key = lines.next().and_then(|line| unhex(line.trim().as_bytes())).map(Zeroizing::new);
        let Some(key) = key.filter(|key| key.len() >= LENGTH) else {
            return Err(self.key_error("its first line has to be a key of 64 hexadecimal digits or more"));
        };
        let last = lines.next().map_or(Ok(0), str::parse).map_err(|e| self.key_error(&e))?;
        Ok(Some(Opened { key: hmac::Key::new(hmac::HMAC_SHA256, &key), last, text: text.clone() }))
    }

    fn make(&self) -> Result<Opened, SealError> {
        let mut key = Zeroizing::new([0; LENGTH]);
        aws_lc_rs::rand::fill(&mut *key).map_err(|_| self.key_error("the system gives no random numbers"))?;
        self.write(&Zeroizing::new(hex(&*key)), 0)?;
        self.open()?.ok_or_else(|| self.key_error("it went as it was made"))
    }

    fn write(&self, key: &str, last: u64) -> Result<(), SealError> {
        let last = format!("\n{last}\n");
        replace_private(&self.path, &[key.as_bytes(), last.as_bytes()]).map_err(|e| self.key_error(&e))
    }

    fn key_error(&self, reason: &(impl std::fmt::Display + ?Sized)) -> SealError {
        SealError::Key { path: self.path.clone(), reason: reason.to_string() }
    }
}

/// A state whose code is right.
#[derive(Debug)]
pub struct Checked {
    last: u64,
}

impl Checked {
    /// Whether it is the last one, or a later one, by its number.
    ///
    /// # Errors
    /// [`SealError::Old`].
    pub fn is_last(&self, number: u64) -> Result<(), SealError> {
        if number < self.last { Err(SealError::Old) } else { Ok(()) }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let pairs = text.chunks(2).map(|pair| match pair {
        [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_sealed_opens_and_what_was_changed_or_is_older_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let seal = Seal::own(&path);
        assert!(matches!(seal.check(b"one", b"00"), Err(SealError::Key { .. })));
        let code = seal.code(b"one").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(seal.check(b"one", code.as_bytes()).unwrap().is_last(0).is_ok());
        for (body, code) in
            [(&b"two"[..], code.as_bytes()), (b"one", b"00"), (b"one", b""), (b"one", b"\xff\xffx")]
        {
            assert!(matches!(seal.check(body, code), Err(SealError::Broken(_))));
        }
        let number = seal.next().unwrap();
        seal.remember(number).unwrap();
        let checked = Seal::own(&path).check(b"one", code.as_bytes()).unwrap();
        assert!(matches!(checked.is_last(number - 1), Err(SealError::Old)));
        assert!(checked.is_last(number).is_ok() && checked.is_last(number + 1).is_ok());
        // Another key, and one that is none.
        std::fs::write(&path, "ab".repeat(LENGTH)).unwrap();
        assert!(matches!(seal.check(b"one", code.as_bytes()), Err(SealError::Broken(_))));
        std::fs::write(&path, "abcd").unwrap();
        assert!(matches!(seal.check(b"one", code.as_bytes()), Err(SealError::Key { .. })));
        assert!(matches!(Seal::given(&path).code(b"one"), Err(SealError::Key { .. })), "an operator's stays");
        let code = seal.code(b"one").unwrap();
        assert!(seal.check(b"one", code.as_bytes()).is_ok(), "another key is made");
    }
}
