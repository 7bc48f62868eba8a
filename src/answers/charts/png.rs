//! Renders SVG as PNG, with embedded fonts: the result is the same on every machine.

use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::fontdb::Database;
use resvg::usvg::{Options, Tree};

use crate::answers::charts::svg::FONT;

/// Pixels per unit of the SVG.
const SCALE: f32 = 1.5;

/// Why an SVG could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum DrawError {
    /// The text is not a valid SVG.
    #[error("the SVG cannot be parsed")]
    Unreadable(#[from] resvg::usvg::Error),
    /// The size is zero or too large.
    #[error("an SVG of {width} by {height} units cannot be rendered")]
    Size {
        /// In units of the SVG.
        width: f32,
        /// In units of the SVG.
        height: f32,
    },
    /// The pixels could not be encoded as PNG.
    #[error("the PNG cannot be encoded")]
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

/// Renders an SVG; returns the bytes of a PNG file.
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
