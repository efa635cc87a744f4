//! Files that only their owner reads, and that are replaced whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Puts a file with these parts, one after the other, in the place of `path`. Its directory is made if it is not there. Who
/// reads the file meanwhile, or after a crash, sees the old content or the new one.
///
/// # Errors
/// What the file system says; the old file is still there then.
pub fn replace_private(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(".partial");
    let partial = directory.join(partial);
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // A left-over could have another mode: what is secret goes into a file that was made with this one.
    match std::fs::remove_file(&partial) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    File::open(directory)?.sync_all()
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
}
