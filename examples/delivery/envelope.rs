//! The sender and recipient of a message. A server gets them from SMTP; here they come from the
//! header.

/// The envelope of a message. It is kept outside of the message, whose bytes never change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// Empty for a bounce, which must not be answered with another bounce.
    pub(crate) sender: String,
    pub(crate) recipient: String,
}

const NO_SENDER: &str = "unknown-sender@localhost";
const NO_RECIPIENT: &str = "unknown-recipient@localhost";

/// RFC 5321's limit for a path.
const MAX_ADDRESS: usize = 254;

impl Envelope {
    /// Takes the sender from `Return-Path`, else `From`, and the recipient from `Delivered-To`,
    /// else `To` (the first address).
    pub(crate) fn of(message: &[u8]) -> Self {
        let header = Header(message);
        let sender = match header.field("return-path").map(|value| value.trim().to_owned()) {
            Some(path) if path == "<>" => Some(String::new()),
            path => path.as_deref().and_then(address).or_else(|| header.address("from")),
        };
        let recipient = header.address("delivered-to").or_else(|| header.address("to"));
        Self {
            sender: sender.unwrap_or_else(|| NO_SENDER.to_owned()),
            recipient: recipient.unwrap_or_else(|| NO_RECIPIENT.to_owned()),
        }
    }
}

/// A message, of which the header fields are read.
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn address(&self, name: &str) -> Option<String> {
        self.field(name).as_deref().and_then(address)
    }

    /// The first field of this name, unfolded.
    fn field(&self, name: &str) -> Option<String> {
        let mut found: Option<String> = None;
        for line in self.0.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                break;
            }
            let folded = line.starts_with(b" ") || line.starts_with(b"\t");
            match &mut found {
                Some(value) if folded => value.push_str(&String::from_utf8_lossy(line)),
                Some(_) => break,
                None if folded => {}
                None => found = value_of(line, name),
            }
        }
        found
    }
}

fn value_of(line: &[u8], name: &str) -> Option<String> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (field, value) = line.split_at(colon);
    field
        .trim_ascii_end()
        .eq_ignore_ascii_case(name.as_bytes())
        .then(|| String::from_utf8_lossy(&value[1..]).into_owned())
}

/// The first address in `text`: `<…>` if there is one, else a word with an `@`. Good enough to
/// label a message; not a parser of RFC 5322 address lists.
fn address(text: &str) -> Option<String> {
    let bracketed = text.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(inner, _)| inner);
    let plain = || text.split([' ', '\t', ',', ';', '(', ')']).find(|word| word.contains('@'));
    let found = bracketed.filter(|inner| inner.contains('@')).or_else(plain)?.trim();
    let usable = found.len() <= MAX_ADDRESS && !found.chars().any(|c| c.is_control() || c == '<' || c == '>');
    usable.then(|| found.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(message: &str) -> (String, String) {
        let Envelope { sender, recipient } = Envelope::of(message.as_bytes());
        (sender, recipient)
    }

    #[test]
    fn return_path_and_delivered_to_come_first() {
        let message =
            "Return-Path: <a@x>\r\nFrom: B <b@x>\r\nTo: c@y\r\nDelivered-To: d@y\r\n\r\nTo: no@z\r\n";
        assert_eq!(envelope(message), ("a@x".into(), "d@y".into()));
    }

    #[test]
    fn folded_fields_and_bare_newlines() {
        let message = "From: \"Long, Name\"\n\t<b@x>\nTO : One <one@y>,\n two@y\n\nbody\n";
        assert_eq!(envelope(message), ("b@x".into(), "one@y".into()));
    }

    #[test]
    fn addresses_without_brackets() {
        assert_eq!(envelope("From: root@h (Cron)\nTo: a@b, c@d\n\n"), ("root@h".into(), "a@b".into()));
    }

    #[test]
    fn a_bounce_has_no_sender() {
        assert_eq!(envelope("Return-Path: <>\nFrom: m@x\nTo: a@b\n\n").0, "");
    }

    #[test]
    fn anything_gets_an_envelope() {
        let unknown = (NO_SENDER.to_owned(), NO_RECIPIENT.to_owned());
        for message in ["", "\n\nFrom: a@b\n", "no header at all", "From: <<<>>>\nTo: no address\n"] {
            assert_eq!(envelope(message), unknown, "{message:?}");
        }
        assert_eq!(Envelope::of(&[0xff; 100]).sender, NO_SENDER);
    }
}
