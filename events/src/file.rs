//! Where the security event log goes: standard output, or a file that others may rotate.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The destination.
#[derive(Debug)]
pub(crate) enum Destination {
    Stdout,
    File { path: PathBuf, file: File },
}

impl Destination {
    /// `-` and `/dev/stdout` are standard output; a file is made if it is not there, for its owner alone, and appended to.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        if path == Path::new("-") || path == Path::new("/dev/stdout") {
            return Ok(Self::Stdout);
        }
        Ok(Self::File { path: path.to_owned(), file: append(path)? })
    }

    /// Opens the file again if it was moved away: what rotates logs need not tell us.
    pub(crate) fn look(&mut self) {
        let Self::File { path, file } = self else { return };
        let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
        let ours = file.metadata().map(identity).ok();
        let there = std::fs::metadata(&*path).map(identity).ok();
        // Where it cannot be made now, lines go on into the old one.
        if ours != there
            && let Ok(new) = append(path)
        {
            *file = new;
        }
    }

    /// Writes whole lines.
    pub(crate) fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(lines)?;
                out.flush()
            }
            Self::File { file, .. } => file.write_all(lines),
        }
    }
}

fn append(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("events"), directory.path().join("events.1"));
        let mut log = Destination::open(&path).unwrap();
        log.write(b"1\n").unwrap();
        std::fs::rename(&path, &moved).unwrap();
        log.write(b"2\n").unwrap();
        log.look();
        log.write(b"3\n").unwrap();
        log.look();
        log.write(b"4\n").unwrap();
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert_eq!((read(&moved).as_str(), read(&path).as_str()), ("1\n2\n", "3\n4\n"));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
}
