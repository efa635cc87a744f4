//! A UNIX socket to listen on that only its owner can use, and whose file goes with it.

use std::fs::{DirBuilder, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

/// The most bytes that the kernel takes for a socket's path, without the final zero.
const LONGEST: usize = 107;

/// The socket's file; dropping removes it, unless another took its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

/// Listens at `path`. A socket that nobody listens on any more is replaced; `flag` is what an error tells to change.
pub(super) fn listen(path: &Path, flag: &str) -> anyhow::Result<(UnixListener, SocketFile)> {
    let bound = bind(path, flag);
    bound.with_context(|| format!("cannot listen on the socket {} ({flag})", path.display()))
}

fn bind(path: &Path, flag: &str) -> anyhow::Result<(UnixListener, SocketFile)> {
    let length = path.as_os_str().len();
    if length > LONGEST {
        bail!("its path has {length} bytes and a socket's may have {LONGEST}; choose a shorter one");
    }
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    remove_stale(path, flag)?;
    // The file gets the mode that the socket has when it is bound: there is no moment at which others could connect.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let file = File::from(OwnedFd::from(socket));
    file.set_permissions(Permissions::from_mode(0o600))?;
    let socket = Socket::from(OwnedFd::from(file));
    socket.bind(&SockAddr::unix(path)?)?;
    let inode = std::fs::symlink_metadata(path)?.ino();
    let file = SocketFile { path: path.to_owned(), inode };
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    Ok((UnixListener::from_std(socket.into())?, file))
}

fn remove_stale(path: &Path, flag: &str) -> anyhow::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    if !kind.is_socket() {
        bail!("there is a file of that name which is no socket; move it away, or choose another {flag}");
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!(
            "another process listens on it; is another agent running here? (ss -lxp shows) End it, or choose another {flag}"
        ),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the socket of an agent that has ended");
            Ok(std::fs::remove_file(path)?)
        }
        Err(e) => Err(e).context("it cannot be told whether another process listens on it"),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_connect_and_the_file_goes_with_the_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/down/socket");
        let (listener, file) = listen(&path, "--sds-socket").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let _client = tokio::net::UnixStream::connect(&path).await.unwrap();
        listener.accept().await.unwrap();
        drop((listener, file));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_in_use_is_an_error_and_one_left_behind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (listener, file) = listen(&path, "--sds-socket").unwrap();
        let error = format!("{:#}", listen(&path, "--sds-socket").unwrap_err());
        assert!(error.contains("another process listens") && error.contains("--sds-socket"), "{error}");
        // The one in use is still there.
        tokio::net::UnixStream::connect(&path).await.unwrap();
        // As after SIGKILL: the file stays.
        drop(listener);
        std::mem::forget(file);
        let (_listener, _file) = listen(&path, "--sds-socket").unwrap();
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone_and_a_path_too_long_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "mine").unwrap();
        let error = format!("{:#}", listen(&path, "--xds-socket").unwrap_err());
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        let error =
            format!("{:#}", listen(&directory.path().join("x".repeat(120)), "--xds-socket").unwrap_err());
        assert!(error.contains("shorter"), "{error}");
    }
}
