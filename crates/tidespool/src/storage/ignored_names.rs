//! Names that file systems, desktops and deployment tools leave in an otherwise empty directory.
//!
//! A directory that contains nothing else counts as empty. These files are never read, moved or
//! deleted. The list is short on purpose: a directory with any other content serves another
//! purpose.

/// Whole names.
const NAMES: [&str; 27] = [
    // The root of a file system: fsck's directory, quota files, snapshots, ...
    "lost+found",
    "aquota.user",
    "aquota.group",
    "quota.user",
    "quota.group",
    ".snapshot",
    ".snapshots",
    ".zfs",
    ".glusterfs",
    // ... on a volume that was mounted by Windows or macOS, ...
    "System Volume Information",
    "$RECYCLE.BIN",
    ".Spotlight-V100",
    ".Trashes",
    ".fseventsd",
    // ... or is exported by a storage appliance.
    "@eaDir",
    "#recycle",
    "#snapshot",
    ".etc",
    // What keeps an empty directory in an archive or a repository.
    ".gitkeep",
    ".gitignore",
    ".gitattributes",
    ".hgkeep",
    ".keep",
    ".placeholder",
    // What desktops write into each directory that they show.
    ".DS_Store",
    ".directory",
    "desktop.ini",
];

/// Prefixes of names.
const PREFIXES: [&str; 4] = [
    // A file that was deleted while it was open, on NFS and on FUSE.
    ".nfs",
    ".fuse_hidden",
    // One for each user.
    ".Trash",
    // What macOS keeps beside a file on a file system without resource forks.
    "._",
];

/// Whether a file of this name may be in a spool's directory without being the spool's.
pub(crate) fn is_ignored_name(name: &str) -> bool {
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_files_are_not_ignored() {
        for name in ["lost+found", ".gitkeep", ".nfs00000000012345", ".Trash-1000", "._journal"] {
            assert!(is_ignored_name(name), "{name}");
        }
        for name in ["thesis.txt", "lost+found.old", ".git", ".ssh", "journal", "FORMAT", "", "."] {
            assert!(!is_ignored_name(name), "{name}");
        }
    }
}
