//! An SVG picture as PNG, with fonts of our own: what it looks like depends on no machine.

use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::fontdb::Database;
use resvg::usvg::{Options, Tree};

use crate::charts::svg::FONT;

/// Pixels for each unit of the picture.
const SCALE: f32 = 1.5;

/// Why a picture could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum DrawError {
    /// The text is no picture.
    #[error("the picture cannot be read")]
    Unreadable(#[from] resvg::usvg::Error),
    /// It has no size, or too large a one.
    #[error("a picture of {width} by {height} cannot be drawn")]
    Size {
        /// In units of the picture.
        width: f32,
        /// In units of the picture.
        height: f32,
    },
    /// The pixels could not be written as PNG.
    #[error("the picture cannot be written")]
    Unwritable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The fonts, read once.
static FONTS: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut fonts = Database::new();
    for font in [dejavu::sans::regular(), dejavu::sans::bold()] {
        fonts.load_font_data(font.to_vec());
    }
    fonts.set_sans_serif_family(FONT);
    Arc::new(fonts)
});

/// Draws an SVG picture; the bytes of a PNG file.
pub fn draw(svg: &str) -> Result<Vec<u8>, DrawError> {
    let options = Options { font_family: FONT.to_owned(), fontdb: Arc::clone(&FONTS), ..Options::default() };
    let picture = Tree::from_str(svg, &options)?;
    let (width, height) = (picture.size().width(), picture.size().height());
    let pixels = picture.size().to_int_size().scale_by(SCALE);
    let pixels = pixels.and_then(|size| Pixmap::new(size.width(), size.height()));
    let mut pixels = pixels.ok_or(DrawError::Size { width, height })?;
    resvg::render(&picture, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| DrawError::Unwritable(error.into()))
}
