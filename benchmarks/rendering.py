"""How many times faster than real time one core renders the embedded benchmark.

python benchmarks/rendering.py [--minutes 4] [--height 64] [--frame-rate 5]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from seld.scenes.render import plan_recordings, render_recording
from seld.scenes.settings import PictureSettings, SceneSettings, with_minutes
from seld.scenes.sounds import open_bank


def main() -> None:
    """Render in this process alone and compare CPU time with what was rendered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--height", type=int, default=64, help="of the picture, in px")
    parser.add_argument("--frame-rate", type=int, default=5)
    parser.add_argument("--sound-bank")
    arguments = parser.parse_args()
    picture = PictureSettings(
        height_px=arguments.height,
        width_px=2 * arguments.height,
        frame_rate_hz=arguments.frame_rate,
    )
    settings = with_minutes(SceneSettings(picture=picture), arguments.minutes)
    bank = open_bank(arguments.sound_bank)
    first, *recordings = plan_recordings(settings)
    with tempfile.TemporaryDirectory() as folder:
        render_recording(first, settings, bank, Path(folder))  # imports and caches
        wall_start_s, cpu_start_s = time.perf_counter(), time.process_time()
        for recording in recordings:
            render_recording(recording, settings, bank, Path(folder))
        wall_s = time.perf_counter() - wall_start_s
        cpu_s = time.process_time() - cpu_start_s
    rendered_s = sum(recording.duration_s for recording in recordings)
    print(
        f"{rendered_s / 60:.1f} min of scenes, {picture.width_px}x{picture.height_px} px at "
        f"{picture.frame_rate_hz} fps: {rendered_s / cpu_s:.1f} x real time per core "
        f"({cpu_s:.1f} s CPU, {wall_s:.1f} s elapsed)"
    )


if __name__ == "__main__":
    main()
