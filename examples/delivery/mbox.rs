//! Reads messages from an mbox file in the "mboxrd" format.
//!
//! A line that starts with `From ` begins a message. The writer of the file has put a `>` before
//! each message line that reads `From `, `>From `, `>>From ` …, and the reader removes it. The one
//! empty line before the next `From ` is a separator, not part of the message. All other bytes are
//! kept.

use std::io::{self, BufRead};

/// Starts the line that begins a message.
const FROM_LINE: &[u8] = b"From ";

/// Reads the messages of a file in order.
pub(crate) struct MboxReader<R> {
    input: R,
    /// Longest accepted message in bytes. The limit bounds the memory.
    max_message: u64,
    line: Vec<u8>,
    started: bool,
}

/// Why a file could not be read as an mbox.
#[derive(Debug)]
pub(crate) enum MboxError {
    Io(io::Error),
    /// The file does not start with `From `. Holds its first bytes.
    NotMbox(Vec<u8>),
    /// A message is longer than allowed.
    TooLong,
}

impl From<io::Error> for MboxError {
    fn from(err: io::Error) -> Self {
        Self::Io(err)
    }
}

impl<R: BufRead> MboxReader<R> {
    pub(crate) fn new(input: R, max_message: u64) -> Self {
        Self { input, max_message, line: Vec::new(), started: false }
    }

    /// The next message, or `None` at the end of the file.
    pub(crate) fn next_message(&mut self) -> Result<Option<Vec<u8>>, MboxError> {
        if !self.started {
            self.started = true;
            let read = self.read_line();
            // Checked before `read`: a large file without newlines is not an mbox, and not a long
            // message.
            if !self.line.is_empty() && !self.line.starts_with(FROM_LINE) {
                let shown = self.line.len().min(40);
                return Err(MboxError::NotMbox(self.line[..shown].to_vec()));
            }
            read?;
        }
        if self.line.is_empty() {
            return Ok(None);
        }
        let mut message = Vec::new();
        loop {
            self.read_line()?;
            if self.line.is_empty() || self.line.starts_with(FROM_LINE) {
                break;
            }
            message.extend_from_slice(unquoted(&self.line));
            if message.len() as u64 > self.max_message {
                return Err(MboxError::TooLong);
            }
        }
        without_last_empty_line(&mut message);
        Ok(Some(message))
    }

    /// Reads the next line with its line end. The line is empty at the end of the file.
    fn read_line(&mut self) -> Result<(), MboxError> {
        self.line.clear();
        let limit = self.max_message.saturating_add(1);
        let read = io::Read::take(&mut self.input, limit).read_until(b'\n', &mut self.line)?;
        if read as u64 > self.max_message { Err(MboxError::TooLong) } else { Ok(()) }
    }
}

/// Removes one `>`: `>From ` → `From `, `>>From ` → `>From `. Other lines are returned unchanged.
fn unquoted(line: &[u8]) -> &[u8] {
    let markers = line.iter().take_while(|byte| **byte == b'>').count();
    if markers > 0 && line[markers..].starts_with(FROM_LINE) { &line[1..] } else { line }
}

fn without_last_empty_line(message: &mut Vec<u8>) {
    let kept = if message == b"\n" || message.ends_with(b"\n\n") {
        message.len() - 1
    } else if message == b"\r\n" || message.ends_with(b"\n\r\n") {
        message.len() - 2
    } else {
        message.len()
    };
    message.truncate(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(file: &[u8]) -> Result<Vec<String>, MboxError> {
        let mut reader = MboxReader::new(file, 1_000);
        let mut found = Vec::new();
        while let Some(message) = reader.next_message()? {
            found.push(String::from_utf8(message).unwrap());
        }
        Ok(found)
    }

    #[test]
    fn messages_without_their_separators() {
        let file = b"From a@x Mon Jan  1 00:00:00 2024\nA: 1\n\none\n\nFrom b@x date\nB: 2\n\ntwo\n\n";
        assert_eq!(messages(file).unwrap(), ["A: 1\n\none\n", "B: 2\n\ntwo\n"]);
    }

    #[test]
    fn crlf_and_missing_last_newline_are_kept() {
        let file = b"From a\r\nA: 1\r\n\r\none\r\n\r\nFrom b\r\nB: 2\r\n\r\ntwo";
        assert_eq!(messages(file).unwrap(), ["A: 1\r\n\r\none\r\n", "B: 2\r\n\r\ntwo"]);
    }

    #[test]
    fn one_quote_is_removed() {
        let file = b"From a\nX: y\n\n>From me\n>>From you\n> From afar\n>Fromage\n";
        assert_eq!(messages(file).unwrap(), ["X: y\n\nFrom me\n>From you\n> From afar\n>Fromage\n"]);
    }

    #[test]
    fn only_one_empty_line_is_a_separator() {
        assert_eq!(messages(b"From a\nX: y\n\n\n\nFrom b\n\n").unwrap(), ["X: y\n\n\n", ""]);
    }

    #[test]
    fn an_empty_file_has_no_messages() {
        assert!(messages(b"").unwrap().is_empty());
    }

    #[test]
    fn a_file_that_is_not_an_mbox_is_rejected_with_its_first_bytes() {
        for file in [b"Return-Path: <a@b>\n".as_slice(), b"\x7fELF\0\0", b"\nFrom a\n", b"From: a@b\n"] {
            let Err(MboxError::NotMbox(start)) = messages(file) else { panic!("{file:?}") };
            assert!(file.starts_with(&start));
        }
    }

    #[test]
    fn an_endless_message_or_line_is_rejected() {
        let long_line = [b"From a\n".as_slice(), &[b'x'; 2_000]].concat();
        assert!(matches!(messages(&long_line), Err(MboxError::TooLong)));
        let many_lines = [b"From a\n".as_slice(), &b"0123456789\n".repeat(200)].concat();
        assert!(matches!(messages(&many_lines), Err(MboxError::TooLong)));
    }
}
