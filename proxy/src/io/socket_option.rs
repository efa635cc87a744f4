//! An option of a socket by the system's numbers, for whatever has no function of its own.

use std::os::fd::{AsFd, AsRawFd};

/// When in a socket's life an option is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Before it is bound.
    Prebind,
    /// After it is bound.
    Bound,
    /// After it listens.
    Listening,
}

/// One option.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketOption {
    level: i32,
    name: i32,
    /// As `setsockopt` takes it.
    value: Vec<u8>,
    moment: Moment,
    /// Only for sockets of this family.
    v4: bool,
    v6: bool,
}

impl SocketOption {
    /// An option by its numbers: level, name, the value as `setsockopt` takes it; for sockets of IPv4, of IPv6.
    pub fn new(level: i32, name: i32, value: Vec<u8>, moment: Moment, v4: bool, v6: bool) -> Self {
        Self { level, name, value, moment, v4, v6 }
    }

    /// Lets so many connections wait that came with data in their SYN (TCP_FASTOPEN).
    pub fn fast_open(length: u32) -> Self {
        Self::number(libc::IPPROTO_TCP, libc::TCP_FASTOPEN, length, Moment::Listening)
    }

    /// Leaves the choice of a port from binding to connecting (IP_BIND_ADDRESS_NO_PORT).
    pub fn bind_address_no_port() -> Self {
        Self::number(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1, Moment::Prebind)
    }

    fn number(level: i32, name: i32, value: u32, moment: Moment) -> Self {
        Self { level, name, value: value.to_ne_bytes().to_vec(), moment, v4: true, v6: true }
    }

    /// Sets those of `options` whose moment it is on a socket of this family.
    pub fn set_all(options: &[Self], moment: Moment, ipv4: bool, socket: &impl AsFd) -> std::io::Result<()> {
        let fits = |o: &&Self| o.moment == moment && if ipv4 { o.v4 } else { o.v6 };
        options.iter().filter(fits).try_for_each(|o| o.set(socket))
    }

    /// Sets it, whatever its moment.
    #[allow(unsafe_code, reason = "no safe wrapper takes an option by its number")]
    pub fn set(&self, socket: &impl AsFd) -> std::io::Result<()> {
        let length = libc::socklen_t::try_from(self.value.len()).map_err(std::io::Error::other)?;
        // SAFETY: the descriptor is borrowed and so open; the pointer and the length are those of a living slice, from
        // which the kernel only reads.
        let result = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                self.level,
                self.name,
                self.value.as_ptr().cast(),
                length,
            )
        };
        if result == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        let (level, name) = (self.level, self.name);
        Err(std::io::Error::new(error.kind(), format!("socket option {name} of level {level}: {error}")))
    }
}
