//! The mount table of this process, parsed from `/proc/self/mountinfo`; see proc_pid_mountinfo(5).

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Types of file systems whose files other machines change without an inotify(7) event here: network file systems, and
/// directories that a virtual machine shares with its host.
const REMOTE: [&str; 20] = [
    "9p",
    "afs",
    "ceph",
    "cifs",
    "fakeowner",
    "fuse",
    "fuseblk",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "ocfs2",
    "prl_fs",
    "smb3",
    "smbfs",
    "vboxsf",
    "virtiofs",
    "vmhgfs",
];

/// Mount points with the types of their file systems. Of several mounts on one point the last, which hides the others,
/// counts.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    types: HashMap<PathBuf, String>,
}

impl Mounts {
    /// Reads the present mount table; empty if there is no `/proc`. Blocks on I/O.
    pub(super) fn read() -> Self {
        fs::read("/proc/self/mountinfo").map_or_else(|_| Self::default(), |table| Self::parse(&table))
    }

    fn parse(table: &[u8]) -> Self {
        let lines = table.split(|&byte| byte == b'\n');
        let types = lines.filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ');
            let at = fields.nth(4)?;
            // A dash ends the optional fields, of which there may be any number.
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
            Some((unescape(at), String::from_utf8_lossy(kind).into_owned()))
        });
        Self {
            types: types.collect(),
        }
    }

    /// Whether this real path is a mount point.
    pub(super) fn is_mount(&self, path: &Path) -> bool {
        self.types.contains_key(path)
    }

    /// Mount points directly in this real directory.
    pub(super) fn within(&self, dir: &Path) -> impl Iterator<Item = &Path> {
        let points = self.types.keys().map(PathBuf::as_path);
        points.filter(move |point| point.parent() == Some(dir))
    }

    /// The type of the file system of this real path, if it is a remote one: changes by other machines raise no event.
    pub(super) fn remote(&self, path: &Path) -> Option<&str> {
        let kind = path.ancestors().find_map(|above| self.types.get(above))?;
        (REMOTE.contains(&kind.as_str()) || kind.starts_with("fuse.")).then_some(kind)
    }
}

/// Decodes the octal escapes of a mountinfo field: space, tab, newline and backslash are `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\');
        let octal = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 27 0:21 / / rw,relatime - overlay overlay rw,lowerdir=/a
36 35 98:0 /mnt1 /etc/my\\040conf rw,noatime master:1 propagate_from:2 - ext4 /dev/root rw,errors=continue
40 22 0:50 /srv /etc/sluice rw - nfs4 server:/srv rw
41 40 0:51 / /etc/sluice/a.yaml rw shared:3 - ext4 /dev/root rw
42 22 0:52 / /home rw - fuse.sshfs host: rw
43 22 0:53 / /over rw - nfs server:/x rw
44 43 0:54 / /over rw - tmpfs tmpfs rw
not a line
";

    #[test]
    fn mount_points_are_unescaped() {
        let mounts = Mounts::parse(TABLE);
        assert!(mounts.is_mount(Path::new("/etc/my conf")));
        assert!(!mounts.is_mount(Path::new("/etc")));
        let within: Vec<_> = mounts.within(Path::new("/etc/sluice")).collect();
        assert_eq!(within, [Path::new("/etc/sluice/a.yaml")]);
    }

    #[test]
    fn remote_file_systems_are_known_by_their_types() {
        let mounts = Mounts::parse(TABLE);
        let remote = |path| mounts.remote(Path::new(path));
        assert_eq!(remote("/etc/sluice"), Some("nfs4"));
        assert_eq!(remote("/etc/sluice/sub/b.yaml"), Some("nfs4"));
        assert_eq!(remote("/etc/sluice/a.yaml"), None);
        assert_eq!(remote("/home/me/sluice.yaml"), Some("fuse.sshfs"));
        assert_eq!(remote("/over/sluice.yaml"), None);
        assert_eq!(remote("/etc/my conf/a.yaml"), None);
        assert_eq!(Mounts::default().remote(Path::new("/x")), None);
    }
}
