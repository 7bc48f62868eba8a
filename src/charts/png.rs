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
#[error("the picture cannot be drawn: {0}")]
pub struct DrawError(String);

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
    let picture = Tree::from_str(svg, &options).map_err(|error| DrawError(error.to_string()))?;
    let size = picture.size().to_int_size().scale_by(SCALE).ok_or_else(|| DrawError("it has no size".to_owned()))?;
    let mut pixels = Pixmap::new(size.width(), size.height()).ok_or_else(|| DrawError("it is too large".to_owned()))?;
    resvg::render(&picture, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| DrawError(error.to_string()))
}
