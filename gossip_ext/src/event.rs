//! One event's JSON, as far as gossip must look into it: whether the message says of itself what its batch says of it,
//! and the parts that a batch may leave out. Not here: whether the rest is JSON at all; who decodes it finds that out.
//! Pure: no pyo3, iroh or tokio, so that tests and a fuzzer take this file by path.

use std::ops::Range;

use memchr::memchr2;

/// Decimal digits of a u64, at most.
const DIGITS: usize = 20;

/// Levels of arrays and objects in [`parts`]. Who decodes it has a limit too, of all levels of the message; far below it
/// nobody needs to count again.
const LEVELS: usize = 64;

/// What a batch says of each of its events.
const SAID: [&[u8]; 3] = [b"author", b"epoch", b"seq"];

/// Bytes that every template of [`Template::new`] holds beside its topic.
const FIXED: usize =
    br#"{"type":"","detail":,"meta":{"author":"","epoch":"","seq":"#.len() + 64 + 16;

/// Bytes that [`Template::join`] adds to a detail and a tail.
pub fn left_out(topic: &str, seq: u64) -> usize {
    FIXED + topic.len() + decimal(seq, &mut [0; DIGITS]).len()
}

/// The events of one topic, author and epoch: they differ in their number, their detail and what follows the number.
#[derive(Debug, Clone)]
pub struct Template {
    topic: String,
    author: String,
    epoch: String,
    before: Vec<u8>,
    between: Vec<u8>,
}

impl Template {
    /// `author` and `epoch` as they are written in JSON: hex digits.
    pub fn new(topic: &str, author: String, epoch: String) -> Self {
        let before = format!(r#"{{"type":"{topic}","detail":"#).into_bytes();
        let between = format!(r#","meta":{{"author":"{author}","epoch":"{epoch}","seq":"#);
        Self {
            topic: topic.into(),
            author,
            epoch,
            before,
            between: between.into_bytes(),
        }
    }

    /// Where the detail and the tail of this message are, when it has the shape that orjson gives ours; the rest is in
    /// the template. What [`Self::join`] makes of them is the same bytes, since every other byte was compared here.
    pub fn split(&self, message: &[u8], seq: u64) -> Option<(Range<usize>, Range<usize>)> {
        if !message.starts_with(&self.before) {
            return None;
        }
        let mut number = [0; DIGITS];
        let number = decimal(seq, &mut number);
        let start = self.before.len();
        let fixed = self.between.len() + number.len();
        // From the end: the detail may hold the same words and much after them, what follows the number is short.
        (start..(message.len() + 1).saturating_sub(fixed))
            .rev()
            .find(|at| {
                let rest = &message[*at..];
                rest.starts_with(&self.between) && rest[self.between.len()..].starts_with(number)
            })
            .map(|at| (start..at, at + fixed..message.len()))
    }

    /// Appends the message again.
    pub fn join(&self, out: &mut Vec<u8>, detail: &[u8], seq: u64, tail: &[u8]) {
        let mut number = [0; DIGITS];
        let number = decimal(seq, &mut number);
        for part in [&self.before, detail, &self.between, number, tail] {
            out.extend_from_slice(part);
        }
    }

    /// Whether the message says of itself that it is this topic's, author's and epoch's event `seq`, each once and
    /// without escapes, so that no decoder reads it otherwise. Of text that is not JSON it may say anything.
    pub fn fits(&self, message: &[u8], seq: u64) -> bool {
        let mut number = [0; DIGITS];
        let number = decimal(seq, &mut number);
        let (mut types, mut metas) = (0, 0);
        members(message, |key, value| match key {
            b"type" => {
                types += 1;
                quoted(value, &self.topic)
            }
            b"meta" => {
                metas += 1;
                self.fits_meta(value, number)
            }
            _ => true,
        })
        .is_some()
            && (types, metas) == (1, 1)
    }

    fn fits_meta(&self, meta: &[u8], number: &[u8]) -> bool {
        let (mut authors, mut epochs, mut numbers) = (0, 0, 0);
        members(meta, |key, value| match key {
            b"author" => {
                authors += 1;
                quoted(value, &self.author)
            }
            b"epoch" => {
                epochs += 1;
                quoted(value, &self.epoch)
            }
            b"seq" => {
                numbers += 1;
                value == number
            }
            _ => true,
        })
        .is_some()
            && (authors, epochs, numbers) == (1, 1, 1)
    }
}

fn decimal(number: u64, digits: &mut [u8; DIGITS]) -> &[u8] {
    let (mut rest, mut at) = (number, DIGITS);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &digits[at..];
        }
    }
}

fn quoted(value: &[u8], text: &str) -> bool {
    value
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""))
        == Some(text.as_bytes())
}

/// Whether the detail is one value and the tail only adds members to `meta`, none of which a batch says: then what
/// [`Template::join`] makes of them `fits`, and nobody needs it to read them. So too in a list of many, if that is JSON as
/// a whole: every value ends where it seems to.
pub fn parts(detail: &[u8], tail: &[u8]) -> bool {
    is_value(detail) && adds(tail).is_some()
}

/// The members that a tail of [`parts`] adds to `meta`, between braces.
pub fn added(tail: &[u8]) -> &[u8] {
    match tail {
        [b',', members @ .., b'}', b'}'] => members,
        _ => &[],
    }
}

fn is_value(text: &[u8]) -> bool {
    let mut text = Text::new(text);
    text.value().is_some() && text.at == text.bytes.len() && text.deepest <= LEVELS
}

fn adds(tail: &[u8]) -> Option<()> {
    let mut text = Text::new(tail);
    while text.peek() == Some(b',') {
        text.at += 1;
        if SAID.contains(&text.key()?) {
            return None;
        }
        text.expect(b':')?;
        text.value()?;
    }
    (&tail[text.at..] == b"}}" && text.deepest <= LEVELS).then_some(())
}

/// Shows each member of an object: its key and its value's text. `None` when `take` refuses one, when the text is no
/// object, or when a key is written with escapes and so might be any other.
fn members<'a>(object: &'a [u8], mut take: impl FnMut(&'a [u8], &'a [u8]) -> bool) -> Option<()> {
    let mut text = Text::new(object);
    text.expect(b'{')?;
    if text.expect(b'}').is_none() {
        loop {
            let key = text.key()?;
            text.expect(b':')?;
            if !take(key, text.value()?) {
                return None;
            }
            if text.expect(b',').is_none() {
                text.expect(b'}')?;
                break;
            }
        }
    }
    text.skip_space();
    (text.at == object.len()).then_some(())
}

/// A place in a JSON text. Brackets are counted, not matched, and words are not read: on JSON that is exact, and for
/// what is not JSON nobody asks.
struct Text<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Levels of the deepest value so far.
    deepest: usize,
}

impl<'a> Text<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            deepest: 0,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes this byte, and the space before it; stays before the byte that is another.
    fn expect(&mut self, byte: u8) -> Option<()> {
        self.skip_space();
        (self.peek() == Some(byte)).then(|| self.at += 1)
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        self.skip_space();
        let start = self.at + 1;
        self.skip_string()?;
        let key = &self.bytes[start..self.at - 1];
        (!key.contains(&b'\\')).then_some(key)
    }

    /// Any value's text, without the space around it.
    fn value(&mut self) -> Option<&'a [u8]> {
        self.skip_space();
        let start = self.at;
        match self.peek()? {
            b'"' => self.skip_string()?,
            b'{' | b'[' => self.skip_nested()?,
            _ => self.skip_word(),
        }
        (self.at > start).then(|| &self.bytes[start..self.at])
    }

    fn skip_string(&mut self) -> Option<()> {
        self.expect(b'"')?;
        loop {
            self.at += memchr2(b'"', b'\\', self.bytes.get(self.at..)?)?;
            if self.bytes[self.at] == b'"' {
                self.at += 1;
                return Some(());
            }
            self.at += 2;
        }
    }

    /// An array or object. A count and no recursion: the nesting is the peer's choice.
    fn skip_nested(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.skip_string()?;
                    continue;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.deepest = self.deepest.max(depth);
                }
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }

    fn skip_word(&mut self) {
        let ends = |byte: &u8| b",[]{}\" \t\n\r".contains(byte);
        let rest = &self.bytes[self.at..];
        self.at += rest.iter().position(ends).unwrap_or(rest.len());
    }
}
