//! Files that only their owner reads, and that are replaced whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Puts a file with these parts, one after the other, in the place of `path`. Its directory is made if it is not there. Who
/// reads the file meanwhile, or after a crash, sees the old content or the new one.
///
/// # Errors
/// What the file system says; the old file is still there then.
pub fn replace_private(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let (directory, partial) = beside(path, ".partial")?;
    // A left-over could have another mode: what is secret goes into a file that was made with this one.
    match std::fs::remove_file(&partial) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    write_new(&partial, parts)?;
    std::fs::rename(&partial, path)?;
    File::open(directory)?.sync_all()
}

/// Makes a file with these parts where there is none, and says whether it did. Of several processes that do so at one moment one
/// makes it, and all see it whole.
///
/// # Errors
/// What the file system says.
pub fn create_private(path: &Path, parts: &[&[u8]]) -> io::Result<bool> {
    let (directory, partial) = beside(path, &format!(".{:016x}.partial", fastrand::u64(..)))?;
    let linked = write_new(&partial, parts).and_then(|()| std::fs::hard_link(&partial, path));
    // It has another name now, or is of no use.
    let _ = std::fs::remove_file(&partial);
    match linked {
        Ok(()) => File::open(directory)?.sync_all().map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

/// The directory of a file, which is made if it is not there, and a hidden file in it with a name of this end.
fn beside<'a>(path: &'a Path, end: &str) -> io::Result<(&'a Path, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(end);
    Ok((directory, directory.join(hidden)))
}

fn write_new(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/file");
        replace_private(&path, &[b"one ", b"two"]).unwrap();
        // A left-over that anybody could read.
        let partial = directory.path().join("deep/.file.partial");
        std::fs::write(&partial, "left over").unwrap();
        std::fs::set_permissions(&partial, PermissionsExt::from_mode(0o644)).unwrap();
        replace_private(&path, &[b"three"]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!partial.exists());
    }

    #[test]
    fn a_file_that_is_there_is_not_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/file");
        assert!(create_private(&path, &[b"one ", b"two"]).unwrap());
        assert!(!create_private(&path, &[b"three"]).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"one two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path().join("deep")).unwrap().count(), 1, "nothing is left");
    }
}
