//! The report that a message could not be delivered (RFC 3464). The message is its last part.

use tidespool_core::SpoolId;

use crate::envelope::Envelope;

/// Renders the report. `date` has the format of RFC 5322. The message is included byte for byte.
pub(crate) fn render(id: SpoolId, envelope: &Envelope, attempts: u32, date: &str, message: &[u8]) -> Vec<u8> {
    // A bounce has no sender. The report about a bounce goes to the postmaster (RFC 5321, section
    // 4.5.5).
    let to = if envelope.sender.is_empty() { "postmaster@localhost" } else { &envelope.sender };
    let recipient = &envelope.recipient;
    let boundary = boundary(id);
    let head = format!(
        "Return-Path: <>\n\
         Date: {date}\n\
         From: Mail Delivery System <MAILER-DAEMON@localhost>\n\
         To: <{to}>\n\
         Subject: Undelivered Mail Returned to Sender\n\
         Message-ID: <{id}.bounce@localhost>\n\
         Auto-Submitted: auto-replied\n\
         MIME-Version: 1.0\n\
         Content-Type: multipart/report; report-type=delivery-status;\n\
         \tboundary=\"{boundary}\"\n\
         \n\
         --{boundary}\n\
         Content-Type: text/plain; charset=us-ascii\n\
         \n\
         The message below could not be delivered to <{recipient}>.\n\
         Delivery attempts: {attempts}\n\
         \n\
         --{boundary}\n\
         Content-Type: message/delivery-status\n\
         \n\
         Reporting-MTA: dns; localhost\n\
         \n\
         Final-Recipient: rfc822; {recipient}\n\
         Action: failed\n\
         Status: 5.0.0\n\
         \n"
    );
    let mut report = head.replace('\n', "\r\n").into_bytes();
    report.extend_from_slice(message_starts(&boundary).as_bytes());
    report.extend_from_slice(message);
    report.extend_from_slice(message_ends(&boundary).as_bytes());
    report
}

/// The message inside the report that [`render`] made for `id`. `None` if `report` is something
/// else.
pub(crate) fn message_in(report: &[u8], id: SpoolId) -> Option<&[u8]> {
    let boundary = boundary(id);
    let starts = message_starts(&boundary);
    let start = report.windows(starts.len()).position(|window| window == starts.as_bytes())? + starts.len();
    report[start..].strip_suffix(message_ends(&boundary).as_bytes())
}

fn boundary(id: SpoolId) -> String {
    format!("=_bounce_{id}")
}

fn message_starts(boundary: &str) -> String {
    format!("--{boundary}\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n")
}

/// The newline before a boundary belongs to the boundary, so the message keeps its end as it is.
fn message_ends(boundary: &str) -> String {
    format!("\r\n--{boundary}--\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(sender: &str) -> Envelope {
        Envelope { sender: sender.into(), recipient: "to@b".into() }
    }

    #[test]
    fn a_bounce_contains_the_message_unchanged() {
        let id = SpoolId::new();
        for message in [b"".as_slice(), b"A: b\n\nno newline", b"A: b\r\n\r\n--x--\r\n", &[0, 255, 13, 10]] {
            let report = render(id, &envelope("a@b"), 3, "now", message);
            assert_eq!(message_in(&report, id), Some(message));
            assert_eq!(message_in(&report, SpoolId::new()), None);
            assert_eq!(message_in(&report[..report.len() - 1], id), None);
        }
    }

    #[test]
    fn a_bounce_of_a_bounce_goes_to_the_postmaster() {
        let text =
            |sender| String::from_utf8(render(SpoolId::new(), &envelope(sender), 1, "now", b"")).unwrap();
        assert!(text("a@b").contains("\r\nTo: <a@b>\r\n"));
        assert!(text("").contains("\r\nTo: <postmaster@localhost>\r\n"));
        assert!(text("a@b").starts_with("Return-Path: <>\r\n"));
    }
}
