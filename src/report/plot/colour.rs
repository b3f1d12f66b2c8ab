//! Colours that stand out from white and from near-black alike.

use plotters::style::RGBAColor;

/// A colour of figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Colour {
    /// Red, green, blue.
    pub(crate) rgb: (u8, u8, u8),
    /// 1 is opaque.
    pub(crate) alpha: f64,
}

/// Text, axes and lines that carry no value.
pub(crate) const INK: Colour = opaque(0x74, 0x7c, 0x86);
/// Marks whose value is unknown.
pub(crate) const GREY: Colour = opaque(0x8a, 0x8a, 0x8a);
/// What went wrong.
pub(crate) const RED: Colour = opaque(0xe0, 0x45, 0x45);

/// Ends and middles of the sequential ramp: indigo, magenta, orange, so that its order shows in hue and in
/// lightness and survives colour blindness.
const RAMP: [(u8, u8, u8); 4] =
    [(0x66, 0x66, 0xec), (0xa0, 0x4f, 0xc8), (0xd4, 0x53, 0x7e), (0xe2, 0x87, 0x2e)];

/// Names: blue, orange, green, purple, red, teal, olive, brown.
const NAMES: [(u8, u8, u8); 8] = [
    (0x3b, 0x82, 0xd6),
    (0xd9, 0x77, 0x2b),
    (0x2f, 0x9e, 0x6e),
    (0x9a, 0x63, 0xc9),
    (0xd1, 0x49, 0x5b),
    (0x1f, 0x97, 0xa8),
    (0x8f, 0x8d, 0x2a),
    (0xa3, 0x76, 0x5a),
];

const fn opaque(r: u8, g: u8, b: u8) -> Colour {
    Colour { rgb: (r, g, b), alpha: 1.0 }
}

impl Colour {
    /// The same colour, see-through.
    pub(crate) fn alpha(self, alpha: f64) -> Self {
        Self { alpha, ..self }
    }

    pub(super) fn rgba(self) -> RGBAColor {
        RGBAColor(self.rgb.0, self.rgb.1, self.rgb.2, self.alpha)
    }
}

/// The colour of a number at `t` in [0, 1] of its range.
pub(crate) fn sequential(t: f64) -> Colour {
    let place = t.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let i = (place as usize).min(RAMP.len() - 2);
    let part = place - i as f64;
    let (from, to) = (RAMP[i], RAMP[i + 1]);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * part).round() as u8;
    opaque(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

/// The colour of the `i`-th name.
pub(crate) fn categorical(i: usize) -> Colour {
    let (r, g, b) = NAMES[i % NAMES.len()];
    opaque(r, g, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn luminance(colour: Colour) -> f64 {
        let linear = |c: u8| {
            let c = f64::from(c) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        let (r, g, b) = colour.rgb;
        0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
    }

    /// The lower of the contrasts (WCAG) against a white and a dark page.
    fn contrast(colour: Colour) -> f64 {
        let dark = opaque(0x0d, 0x11, 0x17);
        let own = luminance(colour) + 0.05;
        (1.05 / own).min(own / (luminance(dark) + 0.05))
    }

    #[test]
    fn every_colour_shows_on_white_and_on_black() {
        assert!(contrast(INK) >= 4.0, "{}", contrast(INK));
        for i in 0..NAMES.len() {
            assert!(contrast(categorical(i)) >= 2.8, "{i}: {}", contrast(categorical(i)));
        }
        for i in 0..=30 {
            let colour = sequential(f64::from(i) / 30.0);
            assert!(contrast(colour) >= 2.6, "{i}: {} {colour:?}", contrast(colour));
        }
        assert!(contrast(RED) >= 2.8 && contrast(GREY) >= 2.8);
    }

    #[test]
    fn the_ramp_grows_lighter() {
        let steps: Vec<f64> = (0..=10).map(|i| luminance(sequential(f64::from(i) / 10.0))).collect();
        assert!(steps.windows(2).all(|pair| pair[0] < pair[1] + 0.01), "{steps:?}");
    }
}
