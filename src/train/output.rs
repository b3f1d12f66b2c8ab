//! What makes a run a transcoder's: every row is an input followed by the output to be computed from it.

/// The two parts of a transcoder's rows, and how each is scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Output {
    /// Width of the input, the first numbers of a row.
    pub d_in: usize,
    /// Width of the output, the rest.
    pub d_out: usize,
    /// Every input is multiplied by this; folded into the encoder at the end.
    pub scale_in: f64,
    /// Every output is multiplied by this; folded into the decoder at the end.
    pub scale_out: f64,
}

impl Output {
    /// Numbers of a row.
    pub fn row_width(&self) -> usize {
        self.d_in + self.d_out
    }

    /// Width of the weights.
    pub fn width(&self) -> usize {
        self.d_in.max(self.d_out)
    }

    /// Writes the scaled inputs and outputs of `rows` (B, row width) to `inputs` and `outputs`, both (B, width),
    /// filled up with zeros.
    pub(super) fn split(&self, rows: &[f32], inputs: &mut [f32], outputs: &mut [f32]) {
        let (scale_in, scale_out) = (self.scale_in as f32, self.scale_out as f32);
        let width = self.width();
        let parts = inputs.chunks_exact_mut(width).zip(outputs.chunks_exact_mut(width));
        for (row, (input, output)) in rows.chunks_exact(self.row_width()).zip(parts) {
            let (from_in, from_out) = row.split_at(self.d_in);
            for (part, from, scale) in [(input, from_in, scale_in), (output, from_out, scale_out)] {
                let (part, rest) = part.split_at_mut(from.len());
                part.iter_mut().zip(from).for_each(|(to, x)| *to = x * scale);
                rest.fill(0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_split_scaled_and_filled_up() {
        let output = Output { d_in: 2, d_out: 3, scale_in: 2.0, scale_out: 10.0 };
        let (mut inputs, mut outputs) = ([7.0; 6], [7.0; 6]);
        output.split(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 0.5], &mut inputs, &mut outputs);
        assert_eq!(inputs, [2.0, 4.0, 0.0, 12.0, 14.0, 0.0]);
        assert_eq!(outputs, [30.0, 40.0, 50.0, 80.0, 90.0, 5.0]);
    }
}
