//! The messages to send, read from files before the run starts.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;

use crate::args::Args;
use crate::bad_input::BadInput;
use crate::envelope::Envelope;
use crate::folders;
use crate::mbox::{MboxError, MboxReader};

/// The largest accepted message in bytes: 64 MiB.
pub(crate) const MAX_MESSAGE_BYTES: u64 = 64 << 20;

/// Bytes of input kept in memory during the run: 256 MiB. Messages beyond this limit are skipped.
const MAX_INPUT_BYTES: u64 = 256 << 20;

/// One message of the input.
#[derive(Debug)]
pub(crate) struct Template {
    /// The file, or the number of the message in the mbox. Used in messages to the user.
    pub(crate) name: String,
    pub(crate) bytes: Arc<Box<[u8]>>,
    pub(crate) crc32c: u32,
    pub(crate) envelope: Envelope,
}

/// All messages of the input. Never empty.
#[derive(Debug)]
pub(crate) struct Input {
    /// The file or folder of the input. Used in messages to the user.
    pub(crate) origin: String,
    pub(crate) templates: Vec<Template>,
    /// Messages were skipped because the memory for the input was full.
    pub(crate) cut_short: bool,
}

impl Input {
    /// Reads at most `messages` messages from the input that `args` selects.
    pub(crate) fn read(args: &Args, messages: u64) -> Result<Self, BadInput> {
        let limit = usize::try_from(messages).unwrap_or(usize::MAX);
        if let Some(file) = &args.mbox {
            return Self::from_mbox(file, limit);
        }
        let (dir, files) = match (&args.maildir, &args.eml) {
            (Some(dir), _) => (dir.clone(), folders::maildir_files(dir)?),
            (None, Some(dir)) => (dir.clone(), folders::eml_files(dir)?),
            (None, None) => (own_messages(), folders::eml_files(&own_messages())?),
        };
        Self::from_files(&dir, &files, limit)
    }

    /// The template of message number `index` of the run.
    pub(crate) fn template(&self, index: u64) -> &Template {
        let count = self.templates.len() as u64;
        &self.templates[usize::try_from(index % count).unwrap_or(0)]
    }

    /// A checksum of all messages. A run may only be continued with an equal one.
    pub(crate) fn fingerprint(&self) -> u32 {
        self.templates.iter().fold(0, |crc, template| {
            let crc = crc32c::crc32c_append(crc, &(template.bytes.len() as u64).to_le_bytes());
            crc32c::crc32c_append(crc, &template.crc32c.to_le_bytes())
        })
    }

    fn from_files(dir: &Path, files: &[PathBuf], limit: usize) -> Result<Self, BadInput> {
        let mut set = Set::default();
        for path in files.iter().take(limit) {
            let bytes = read_file(path)?;
            let name = path.strip_prefix(dir).unwrap_or(path).display().to_string();
            if !set.add(name, bytes) {
                break;
            }
        }
        Ok(set.finish(dir))
    }

    fn from_mbox(path: &Path, limit: usize) -> Result<Self, BadInput> {
        let found = std::fs::metadata(path)
            .map_err(|err| BadInput::io("read", path, &err, "give --mbox a file that exists"))?;
        if found.is_dir() {
            return Err(BadInput::new(format!(
                "{} is a folder, and --mbox takes a file; a Maildir is given with --maildir, a folder of .eml files with --eml",
                path.display()
            )));
        }
        let file = File::open(path)
            .map_err(|err| BadInput::io("read", path, &err, "allow reading it, or give another file"))?;
        let mut reader = MboxReader::new(BufReader::new(file), MAX_MESSAGE_BYTES);
        let mut set = Set::default();
        while set.templates.len() < limit {
            let number = set.templates.len() + 1;
            match reader.next_message() {
                Ok(Some(bytes)) => {
                    if !set.add(format!("message {number}"), bytes) {
                        break;
                    }
                }
                Ok(None) => break,
                Err(err) => return Err(mbox_error(path, number, err)),
            }
        }
        if set.templates.is_empty() {
            return Err(BadInput::new(format!("{} is empty: give an mbox with messages", path.display())));
        }
        Ok(set.finish(path))
    }
}

#[derive(Default)]
struct Set {
    templates: Vec<Template>,
    bytes: u64,
    cut_short: bool,
}

impl Set {
    /// Adds a message. Returns false if it does not fit. The first message always fits.
    fn add(&mut self, name: String, bytes: Vec<u8>) -> bool {
        self.bytes += bytes.len() as u64;
        if self.bytes > MAX_INPUT_BYTES {
            self.cut_short = true;
            return false;
        }
        let crc32c = crc32c::crc32c(&bytes);
        let envelope = Envelope::of(&bytes);
        self.templates.push(Template { name, bytes: Arc::new(bytes.into_boxed_slice()), crc32c, envelope });
        true
    }

    fn finish(self, origin: &Path) -> Input {
        Input { origin: origin.display().to_string(), templates: self.templates, cut_short: self.cut_short }
    }
}

/// The folder of the built-in messages, in the source tree.
fn own_messages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/delivery/mail")
}

fn read_file(path: &Path) -> Result<Vec<u8>, BadInput> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_MESSAGE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|err| BadInput::io("read", path, &err, "allow reading it, or remove it"))?;
    if bytes.len() as u64 > MAX_MESSAGE_BYTES {
        return Err(too_large(path, "the message"));
    }
    Ok(bytes)
}

fn mbox_error(path: &Path, number: usize, err: MboxError) -> BadInput {
    match err {
        MboxError::Io(err) => BadInput::io("read", path, &err, "give another file"),
        MboxError::TooLong => too_large(path, &format!("message {number}")),
        MboxError::NotMbox(start) => BadInput::new(format!(
            "{} is not an mbox: it starts with \"{}\", an mbox with a line \"From SENDER DATE\"; a folder of .eml files is given with --eml",
            path.display(),
            start.trim_ascii_end().escape_ascii()
        )),
    }
}

fn too_large(path: &Path, what: &str) -> BadInput {
    BadInput::new(format!(
        "{}: {what} has more than {}, the limit; remove it",
        path.display(),
        ByteSize(MAX_MESSAGE_BYTES)
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn read(options: &[&str]) -> Result<Input, BadInput> {
        let args = Args::try_parse_from([&["delivery"], options].concat()).unwrap();
        Input::read(&args, args.messages)
    }

    #[test]
    fn the_built_in_messages_cover_the_difficult_cases() {
        let input = read(&[]).unwrap();
        let any = |test: &dyn Fn(&[u8]) -> bool| input.templates.iter().any(|t| test(&t.bytes));
        let longest_line = |bytes: &[u8]| bytes.split(|b| *b == b'\n').map(<[u8]>::len).max().unwrap_or(0);
        assert!(input.templates.len() >= 12);
        assert!(any(&|bytes| !bytes.windows(2).any(|pair| pair == b"\r\n")), "bare LF");
        assert!(any(&|bytes| bytes.windows(5).any(|w| w == b"\r\n..\x20")), "dots");
        assert!(
            any(&|bytes| bytes.split(|b| *b == b'\n').any(|line| line.len() == 999)),
            "998 octets and CR"
        );
        assert!(any(&|bytes| longest_line(bytes) > 1_000), "a line that is too long");
        assert!(any(&|bytes| bytes.ends_with(b"\r\n\r\n")), "an empty body");
        assert!(any(&|bytes| bytes.len() > 60_000), "an attachment");
        assert!(any(&|bytes| std::str::from_utf8(bytes).is_err()), "8 bit that is not UTF-8");
        assert!(input.templates.iter().any(|t| t.envelope.sender.is_empty()), "a bounce");
        assert!(input.templates.iter().all(|t| t.envelope.recipient.ends_with(".example")));
    }

    #[test]
    fn messages_are_taken_in_turn() {
        let input = read(&[]).unwrap();
        let count = input.templates.len() as u64;
        assert_eq!(input.template(0).name, input.template(count).name);
        assert_ne!(input.template(0).name, input.template(1).name);
        assert_eq!(read(&["--messages", "3"]).unwrap().templates.len(), 3);
        assert_ne!(read(&["--messages", "3"]).unwrap().fingerprint(), input.fingerprint());
    }

    #[test]
    fn a_file_that_is_not_an_mbox_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("letters");
        std::fs::write(&path, "Dear all,\n").unwrap();
        let err = read(&["--mbox", path.to_str().unwrap()]).unwrap_err().to_string();
        assert!(err.contains("letters is not an mbox: it starts with \"Dear all,\""), "{err}");
        std::fs::write(&path, "").unwrap();
        let err = read(&["--mbox", path.to_str().unwrap()]).unwrap_err().to_string();
        assert!(err.contains("is empty"), "{err}");
        let err = read(&["--mbox", dir.path().to_str().unwrap()]).unwrap_err().to_string();
        assert!(err.contains("is a folder"), "{err}");
    }
}
