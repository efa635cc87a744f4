//! The key of a seal, in a file: its first line, 64 hexadecimal digits or more. A file that is there is only read. So one that an operator
//! has given can be mounted, and serve several proxies.

use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::SealError;
use crate::io::file::{create_private, replace_private};

/// Bytes of a key.
const LENGTH: usize = 32;

/// The file of a key.
#[derive(Clone, Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    /// The file is ours to replace when it cannot be used.
    own: bool,
}

impl KeyFile {
    /// A file of the proxy's own.
    pub(super) fn own(path: PathBuf) -> Self {
        Self { path, own: true }
    }

    /// A file that an operator keeps: the key is made where there is none, and never replaced.
    pub(super) fn given(path: &Path) -> Self {
        Self { path: path.to_owned(), own: false }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The key, which has to be there.
    pub(super) fn read(&self) -> Result<hmac::Key, SealError> {
        self.find()?.ok_or_else(|| self.error("it is not there"))
    }

    /// The key; made where there is none, or none of ours that can be used.
    pub(super) fn read_or_make(&self) -> Result<hmac::Key, SealError> {
        match self.find() {
            Ok(Some(key)) => Ok(key),
            Ok(None) => self.make(),
            // Whatever it sealed can be used no more; the next one can.
            Err(_) if self.own => self.make(),
            Err(error) => Err(error),
        }
    }

    fn find(&self) -> Result<Option<hmac::Key>, SealError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.error(&e)),
        };
        let mut lines = text.lines().map(str::trim);
        let key = lines.next().and_then(|line| unhex(line.as_bytes())).map(Zeroizing::new);
        let Some(key) = key.filter(|key| key.len() >= LENGTH) else {
            return Err(self.error("its first line has to be a key of 64 hexadecimal digits or more"));
        };
        // An earlier version wrote a number there.
        if lines.any(|line| !line.is_empty() && line.parse::<u64>().is_err()) {
            return Err(self.error("it has more than one line; a file has one key"));
        }
        Ok(Some(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    fn make(&self) -> Result<hmac::Key, SealError> {
        let mut key = Zeroizing::new([0; LENGTH]);
        aws_lc_rs::rand::fill(&mut *key).map_err(|_| self.error("the system gives no random numbers"))?;
        let text = Zeroizing::new(hex(&*key));
        let parts = [text.as_bytes(), b"\n"];
        // Another proxy may make one in the same file at this moment: the first one is the key of both.
        let made = match self.own {
            true => replace_private(&self.path, &parts),
            false => create_private(&self.path, &parts).map(drop),
        };
        made.map_err(|e| self.error(&format!("it is not there and cannot be made: {e}")))?;
        self.read()
    }

    fn error(&self, reason: &(impl std::fmt::Display + ?Sized)) -> SealError {
        SealError::Key { path: self.path.clone(), reason: reason.to_string() }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from((digit(*high)? << 4) | digit(*low)?).ok(),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn those_who_make_a_given_key_at_one_moment_have_the_same_one() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().unwrap();
            let file = KeyFile::given(&directory.path().join("deep/key"));
            let together = Barrier::new(4);
            let sign = || {
                together.wait();
                hmac::sign(&file.read_or_make().unwrap(), b"one").as_ref().to_vec()
            };
            let signed: Vec<Vec<u8>> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(sign)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert!(signed.iter().all(|one| *one == signed[0]));
            assert_eq!(
                std::fs::read_dir(directory.path().join("deep")).unwrap().count(),
                1,
                "nothing is left"
            );
        }
    }

    #[test]
    fn a_file_has_one_key_in_hexadecimal_digits_and_may_end_with_empty_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = "5a".repeat(LENGTH);
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            KeyFile::given(&path).read()
        };
        for good in [key.clone(), format!("{key}\n"), format!("{key}\r\n\n\n"), format!("{key}\n12\n")] {
            assert!(read(&good).is_ok(), "{good:?}");
        }
        for bad in [
            String::new(),
            format!("\n{key}"),
            "5a".repeat(LENGTH - 1),
            format!("{key}5"),
            format!("{key}+f"),
            format!("{key}\n{key}\n"),
        ] {
            assert!(matches!(read(&bad), Err(SealError::Key { .. })), "{bad:?}");
        }
    }
}
