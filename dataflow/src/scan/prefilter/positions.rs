//! The positions of a piece of text at which a literal may begin.

/// A text is swept in pieces of this size (bytes), whose positions stay in the processor's nearest cache.
pub const PIECE_BYTES: usize = 4096;

/// Positions that AVX2 looks up together.
#[cfg(target_arch = "x86_64")]
pub(super) const LANES: usize = 32;

/// How far a text has been swept.
#[derive(Default)]
pub struct Sweep {
    /// The next position.
    pub at: usize,
    /// Line feeds before `at`.
    pub line_feeds: u32,
}

/// A position that the tables accept.
#[derive(Clone, Copy, Default)]
pub struct Position {
    /// Where a fingerprint may begin.
    pub at: u32,
    /// Line feeds before `at`.
    pub line_feeds: u32,
    /// The buckets that may be there, as bits.
    pub buckets: u16,
}

/// A buffer for the positions of one piece of a text.
pub struct Positions {
    /// One more than there can be: an entry is written before it is known whether it counts.
    pub(crate) list: Box<[Position; PIECE_BYTES + 1]>,
    pub(crate) count: usize,
    #[cfg(target_arch = "x86_64")]
    pub(crate) strides: Strides,
}

impl Default for Positions {
    fn default() -> Self {
        Positions {
            list: Box::new([Position::default(); PIECE_BYTES + 1]),
            count: 0,
            #[cfg(target_arch = "x86_64")]
            strides: Strides::default(),
        }
    }
}

/// Lanes that were looked up together, with at least one accepted.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Default)]
pub struct Stride {
    /// For each group of eight buckets and each lane, those that accept.
    pub(super) buckets: [[u8; LANES]; 2],
    /// The position of the first lane.
    pub(super) at: u32,
    /// Line feeds before `at`.
    pub(super) line_feeds: u32,
    /// The lanes that some bucket accepts, as bits.
    pub(super) lanes: u32,
    /// The lanes that are line feeds, as bits.
    pub(super) feeds: u32,
}

/// A buffer for the strides of one piece of a text; one more than there can be.
#[cfg(target_arch = "x86_64")]
pub struct Strides(pub(super) Box<[Stride; PIECE_BYTES / LANES + 1]>);

#[cfg(target_arch = "x86_64")]
impl Default for Strides {
    fn default() -> Self {
        Strides(Box::new([Stride::default(); PIECE_BYTES / LANES + 1]))
    }
}
