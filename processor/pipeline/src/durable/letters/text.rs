//! Makes foreign text and bytes safe to show in a terminal. Pure.
//!
//! A letter contains what a producer has sent. It must not be able to move the cursor, to hide
//! text, or to imitate lines of this program.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::fmt::Write;

/// The bytes in a line of the hex dump.
const DUMP_LINE: usize = 16;

/// Escapes control characters and invisible characters. The result is one line.
pub fn line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    text.chars().for_each(|c| escape(c, &mut shown));
    shown
}

/// Like [`line`], but keeps line breaks and indents every line.
pub(super) fn block(text: &str, indent: &str) -> String {
    text.split('\n').map(|part| format!("{indent}{}\n", line(part))).collect()
}

/// Shows text as text, and other bytes as a hex dump. Also returns which of the two it is.
pub(super) fn payload(bytes: &[u8], indent: &str) -> (&'static str, String) {
    match std::str::from_utf8(bytes) {
        Ok(text) => ("text", block(text, indent)),
        Err(_) => ("not UTF-8, as hex", dump(bytes, indent)),
    }
}

/// Cuts the text to at most `most` characters. An ellipsis as the last one shows the cut.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

fn escape(c: char, into: &mut String) {
    // Characters that change the direction of text or are invisible could make a line show
    // something else.
    let unseen = matches!(
        c,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    if c.is_control() || unseen {
        into.extend(c.escape_default());
    } else {
        into.push(c);
    }
}

fn dump(bytes: &[u8], indent: &str) -> String {
    let mut shown = String::with_capacity(bytes.len() * 5);
    for (n, part) in bytes.chunks(DUMP_LINE).enumerate() {
        // Writing to a string does not fail.
        let _ = write!(shown, "{indent}{:08x} ", n * DUMP_LINE);
        for column in 0..DUMP_LINE {
            let _ = match part.get(column) {
                Some(byte) => write!(shown, " {byte:02x}"),
                None => write!(shown, "   "),
            };
        }
        let readable = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '.' };
        let _ = writeln!(shown, "  {}", part.iter().map(readable).collect::<String>());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_line_can_move_the_cursor_or_hide() {
        assert_eq!(line("a\u{1b}[2Jb\nc\td\u{202e}e\u{7f}"), r"a\u{1b}[2Jb\nc\td\u{202e}e\u{7f}");
        assert_eq!(line("Grüße, \"世界\" \\n"), "Grüße, \"世界\" \\n");
    }

    #[test]
    fn a_payload_is_text_if_it_can_be_and_else_a_hex_dump() {
        assert_eq!(payload(b"{\n\x07}", "  "), ("text", "  {\n  \\u{7}}\n".to_owned()));
        let bytes: Vec<u8> = (0xf0..=0xff).chain(*b"a{").collect();
        let (_, shown) = payload(&bytes, "  ");
        assert_eq!(
            shown,
            "  00000000  f0 f1 f2 f3 f4 f5 f6 f7 f8 f9 fa fb fc fd fe ff  ................\n  \
             00000010  61 7b                                            a{\n"
        );
    }

    #[test]
    fn what_is_cut_shows_that_it_is() {
        assert_eq!(cut("größer", 6), "größer");
        assert_eq!(cut("größere", 6), "größe…");
        assert_eq!(cut("abc", 0), "…");
    }
}
