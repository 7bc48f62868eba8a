//! The text between a line's time and its message: its level and its component.
//!
//! Most lines of a log use a few variants of it, so the results are cached by its bytes.

use std::ops::Range;

use super::Level;

/// The level and component between a time and the message.
pub struct Between<'l> {
    pub level: Option<Level>,
    pub component: Option<&'l [u8]>,
    /// How many bytes decide the result, whatever follows them; `None` for all.
    looked_at: Option<usize>,
}

/// Reads level and component between a time and the message:
/// ` ERROR [main] com.acme.Updater - `, ` host updater[17]: `, ` [error] updater: `.
pub fn level_and_component(rest: &[u8]) -> Between<'_> {
    let mut words = Words { rest, open_bracket: false };
    let (level, component) = level_and_name(&mut words);
    // A word ends at the blank after it.
    let looked_at = rest.len() - words.rest.len() + 1;
    Between { level, component, looked_at: Some(looked_at).filter(|&end| end <= rest.len() && !words.open_bracket) }
}

fn level_and_name<'l>(words: &mut Words<'l>) -> (Option<Level>, Option<&'l [u8]>) {
    const WORDS_MAX: usize = 6;
    let mut level = None;
    let mut name: Option<&[u8]> = None;
    for index in 0..WORDS_MAX {
        let Some(word) = words.next() else { break };
        let bare = trim(word);
        let marked = bare.len() < word.len() || bare.iter().all(u8::is_ascii_uppercase) || index == 0;
        if level.is_none()
            && bare.len() > 1
            && marked
            && let Some(found) = Level::parse(bare)
        {
            level = Some(found);
            continue;
        }
        match word {
            // A separator ends the component before it, if there is one.
            b"-" | b"--" | b":" | b"|" => {
                if word != b"|" && name.is_some() {
                    // Python writes `name - LEVEL - text`: the level is still to come.
                    let next = || words.next().map(trim).filter(|word| word.len() > 1).and_then(Level::parse);
                    return (level.or_else(next), name);
                }
            }
            b"---" => {}
            // Brackets contain a thread, a process id or a level.
            [b'[' | b'(', ..] => {}
            [name @ .., b':'] => return (level, component_name(name)),
            _ if word.iter().all(u8::is_ascii_digit) => {}
            // A host or a logger; the next word decides which.
            _ if name.is_none() || index < 2 => name = Some(word),
            _ => break,
        }
    }
    (level, None)
}

/// A cache of levels and components, by the bytes that contain them: a few variants cover most lines.
#[derive(Default)]
pub struct Shapes {
    /// Allocated on first use.
    sets: Vec<[Shape; SHAPE_WAYS]>,
    next_way: usize,
}

/// Sets of shapes, chosen by their first bytes, and shapes in each set.
const SHAPE_SETS: usize = 64;
const SHAPE_WAYS: usize = 4;

/// The first bytes of a shape, which choose its set.
const SHAPE_START: usize = 24;

/// Longer shapes (bytes) are not cached.
const SHAPE_BYTES_MAX: usize = 96;

#[derive(Default, Clone)]
struct Shape {
    /// Empty if the entry is unused.
    bytes: Vec<u8>,
    level: Option<Level>,
    component: Option<Range<usize>>,
}

impl Shapes {
    /// The same as [`level_and_component`].
    pub fn level_and_component<'l>(&mut self, rest: &'l [u8]) -> (Option<Level>, Option<&'l [u8]>) {
        let set = rest.first_chunk::<SHAPE_START>().map(shape_set);
        if let Some(set) = set.and_then(|set| self.sets.get(set))
            && let Some(shape) = set.iter().find(|shape| !shape.bytes.is_empty() && rest.starts_with(&shape.bytes))
        {
            return (shape.level, shape.component.clone().map(|span| &rest[span]));
        }
        let Between { level, component, looked_at } = level_and_component(rest);
        if let (Some(set), Some(length)) = (set, looked_at.filter(|&length| length <= SHAPE_BYTES_MAX)) {
            if self.sets.is_empty() {
                self.sets.resize(SHAPE_SETS, Default::default());
            }
            let component = component.map(|name| {
                let start = name.as_ptr().addr() - rest.as_ptr().addr();
                start..start + name.len()
            });
            self.sets[set][self.next_way] = Shape { bytes: rest[..length].to_vec(), level, component };
            self.next_way = (self.next_way + 1) % SHAPE_WAYS;
        }
        (level, component)
    }
}

fn shape_set(start: &[u8; SHAPE_START]) -> usize {
    /// Mixes bits upwards (Knuth's multiplicative hashing with the golden ratio).
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let words = start.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    let hash = words.fold(0u64, |hash, word| (hash.rotate_left(23) ^ word).wrapping_mul(SPREAD));
    (hash >> 32) as usize % SHAPE_SETS
}

/// The name in `updater[17]`; `None` if it is not a name.
fn component_name(name: &[u8]) -> Option<&[u8]> {
    let name = name.split(|&byte| byte == b'[' || byte == b'(').next()?;
    let starts_well = name.first().is_some_and(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'/' | b'$'));
    (starts_well && !name.contains(&b'=')).then_some(name)
}

fn trim(word: &[u8]) -> &[u8] {
    let outer = |byte: &u8| !byte.is_ascii_alphanumeric();
    let start = word.iter().position(|byte| !outer(byte)).unwrap_or(word.len());
    let end = word.iter().rposition(|byte| !outer(byte)).map_or(start, |last| last + 1);
    &word[start..end]
}

/// Words separated by blanks; a bracketed one may contain blanks.
struct Words<'a> {
    rest: &'a [u8],
    /// Whether a bracket was found that is never closed.
    open_bracket: bool,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let text = self.rest.trim_ascii_start();
        let end = match text.first()? {
            b'[' => text.iter().position(|&byte| byte == b']').map(|end| end + 1),
            _ => None,
        };
        self.open_bracket |= text[0] == b'[' && end.is_none();
        let end = end.or_else(|| text.iter().position(u8::is_ascii_whitespace)).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        Some(word)
    }
}
