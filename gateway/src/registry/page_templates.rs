//! Templates of waiting pages, read from files when a service is loaded and at a reload.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_model::Service;
use tracing::error;

/// The largest template, in bytes.
pub const MAX_PAGE_BYTES: u64 = 64 << 10;

/// The templates of one service by file. Requests read them only for a waiting page.
#[derive(Debug)]
pub struct PageTemplates {
    /// `None` for a file that could not be read yet.
    templates: Mutex<Vec<(PathBuf, Option<Arc<str>>)>>,
}

impl PageTemplates {
    /// Reads the files that a service names; `None` where it names none. A file that cannot be read keeps its content
    /// of `before`, or has none: the built-in page is shown then. The caller has checked the files before
    /// ([`check_page`]), so that only a file which changes at that moment takes this way.
    pub(super) fn load(service: &Service, before: Option<&Self>) -> Option<Self> {
        let files = service.pages().filter_map(|page| page.file.as_deref());
        let templates = files.map(|file| {
            let template = match read_page(file) {
                Ok(template) => Some(template.into()),
                Err(error) => {
                    error!("{}: {error}", file.display());
                    before.and_then(|before| before.get(file))
                }
            };
            (file.to_owned(), template)
        });
        let templates: Vec<_> = templates.collect();
        (!templates.is_empty()).then(|| Self {
            templates: Mutex::new(templates),
        })
    }

    /// The template of a file.
    pub fn get(&self, file: &Path) -> Option<Arc<str>> {
        let templates = self.templates.lock();
        let found = templates.iter().find(|(known, _)| known == file);
        found?.1.clone()
    }

    /// Reads all files again; returns the errors.
    pub(super) fn reread(&self) -> Vec<String> {
        let files: Vec<PathBuf> = self
            .templates
            .lock()
            .iter()
            .map(|(file, _)| file.clone())
            .collect();
        let mut errors = Vec::new();
        for file in files {
            match read_page(&file) {
                Ok(template) => {
                    let mut templates = self.templates.lock();
                    if let Some((_, known)) = templates.iter_mut().find(|(known, _)| *known == file) {
                        *known = Some(template.into());
                    }
                }
                Err(error) => errors.push(format!("{}: {error}; its last content stays", file.display())),
            }
        }
        errors
    }
}

/// Checks that a file can be a waiting page.
///
/// # Errors
/// Why it cannot.
pub fn check_page(file: &Path) -> io::Result<()> {
    read_page(file).map(drop)
}

/// Reads a template. Never waits: a pipe is refused, and so is everything else that is no regular file.
fn read_page(file: &Path) -> io::Result<String> {
    let refused = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(refused("a waiting page has to be a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    // The file may grow while it is read: the bound is on what is read.
    opened.take(MAX_PAGE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_PAGE_BYTES {
        let most = MAX_PAGE_BYTES >> 10;
        return Err(refused(format!("a waiting page has at most {most} KiB")));
    }
    String::from_utf8(bytes).map_err(|_| refused("a waiting page has to be UTF-8".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_regular_text_is_a_page() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).expect("is written");
            path
        };
        let most = usize::try_from(MAX_PAGE_BYTES).expect("fits");
        let large = file("large.html", &vec![b'x'; most]);
        assert_eq!(read_page(&large).expect("as large as may be").len(), most);
        for (path, why) in [
            (file("larger.html", &vec![b'x'; most + 1]), "64 KiB"),
            (file("latin1.html", b"caf\xe9"), "UTF-8"),
            (directory.path().to_owned(), "regular"),
            (directory.path().join("absent.html"), "No such file"),
        ] {
            let error = read_page(&path).expect_err("is refused").to_string();
            assert!(error.contains(why), "{error}");
        }
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let error = read_page(&pipe)
            .expect_err("is refused, without waiting")
            .to_string();
        assert!(error.contains("regular"), "{error}");
    }
}
