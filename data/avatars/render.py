"""Draw avatars: 64 x 64 pictures of heads whose every attribute is known.

The drawings are those of `python_avatars` (MIT; artwork by Pablo Stanley), rasterised by `resvg_py` on a flat
background, cropped to the head and shrunk with anti-aliasing.
"""

import io
import random
from collections.abc import Mapping

import numpy as np
import python_avatars as pa
import resvg_py
from PIL import Image

SIZE = 64  # pixels, the side of a picture
_SCALE = 2  # the crop is drawn this much larger, then averaged down
_BOX = (36, 38, 208)  # left, top, side of the crop in the drawing's own units (280 wide)

_MOUTH = {
    "happy": (pa.MouthType.SMILE, pa.MouthType.BIG_SMILE),
    "neutral": (pa.MouthType.SERIOUS,),
    "sad": (pa.MouthType.SAD,),
    "surprised": (pa.MouthType.SCREAM_OPEN,),
    "angry": (pa.MouthType.GRIMACE,),
}
_EYES = {
    "happy": (pa.EyeType.DEFAULT, pa.EyeType.HAPPY),
    "neutral": (pa.EyeType.DEFAULT,),
    "sad": (pa.EyeType.DEFAULT, pa.EyeType.CLOSED),
    "surprised": (pa.EyeType.SURPRISED,),
    "angry": (pa.EyeType.DEFAULT, pa.EyeType.SQUINT),
}
_BROWS = {
    "happy": (pa.EyebrowType.DEFAULT, pa.EyebrowType.RAISED_EXCITED_NATURAL),
    "neutral": (pa.EyebrowType.DEFAULT, pa.EyebrowType.FLAT_NATURAL),
    "sad": (pa.EyebrowType.SAD_CONCERNED, pa.EyebrowType.SAD_CONCERNED_NATURAL),
    "surprised": (pa.EyebrowType.RAISED_EXCITED, pa.EyebrowType.RAISED_EXCITED_NATURAL),
    "angry": (pa.EyebrowType.ANGRY, pa.EyebrowType.ANGRY_NATURAL),
}
_HAIR = {
    "bald": (pa.HairType.NONE,),
    "short": (pa.HairType.SHORT_FLAT, pa.HairType.SHORT_ROUND, pa.HairType.CAESAR, pa.HairType.SHORT_WAVED),
    "long": (pa.HairType.STRAIGHT_1, pa.HairType.STRAIGHT_STRAND, pa.HairType.LONG_NOT_TOO_LONG),
    "curly": (pa.HairType.CURLY, pa.HairType.FRO),
    "bun": (pa.HairType.BUN,),
}
_HAIR_COLOR = {"black": "#2C1B18", "brown": "#724133", "blonde": "#D6B370", "red": "#C93305", "gray": "#E8E1E1"}
_BEARD = {
    "none": (pa.FacialHairType.NONE,),
    "beard": (pa.FacialHairType.BEARD_LIGHT, pa.FacialHairType.BEARD_MEDIUM, pa.FacialHairType.BEARD_MAGESTIC),
}
_GLASSES = {
    "none": (pa.AccessoryType.NONE,),
    "glasses": (pa.AccessoryType.PRESCRIPTION_2, pa.AccessoryType.ROUND),
    "sunglasses": (pa.AccessoryType.SUNGLASSES, pa.AccessoryType.WAYFARERS),
}
_SKIN = {"pale": "#FFDBB4", "light": "#EDB98A", "brown": "#C07A4B", "dark": "#614335"}
_CLOTHING = {
    "hoodie": (pa.ClothingType.HOODIE,),
    "shirt": (pa.ClothingType.SHIRT_CREW_NECK,),
    "blazer": (pa.ClothingType.BLAZER_SWEATER,),
}
_CLOTHING_COLOR = {"black": "#262E33", "blue": "#5199E4", "red": "#FF5C5C", "white": "#FFFFFF", "green": "#5FBF77"}
_BACKGROUND = {
    "white": "#F7F7F7",
    "blue": "#65C9FF",
    "green": "#A7E8A0",
    "yellow": "#FFE680",
    "purple": "#BFA0F0",
    "black": "#262E33",
}


def render(avatar: Mapping[str, str], rng: random.Random) -> np.ndarray:
    """One picture, uint8 ``[64, 64, 3]``.  ``rng`` chooses among the drawings that share an attribute's value."""
    drawing = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=rng.choice(_HAIR[avatar["hair"]]),
        hair_color=_HAIR_COLOR[avatar["hair_color"]],
        facial_hair=rng.choice(_BEARD[avatar["beard"]]),
        facial_hair_color=_HAIR_COLOR[avatar["hair_color"]],
        mouth=rng.choice(_MOUTH[avatar["expression"]]),
        eyes=rng.choice(_EYES[avatar["expression"]]),
        eyebrows=rng.choice(_BROWS[avatar["expression"]]),
        nose=pa.NoseType.DEFAULT,
        accessory=rng.choice(_GLASSES[avatar["glasses"]]),
        skin_color=_SKIN[avatar["skin"]],
        clothing=rng.choice(_CLOTHING[avatar["clothing"]]),
        clothing_color=_CLOTHING_COLOR[avatar["clothing_color"]],
    )
    left, top, side = _BOX
    scale = SIZE * _SCALE / side
    png = bytes(resvg_py.svg_to_bytes(svg_string=drawing.render(), width=round(280 * scale)))
    layer = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGBA", layer.size, _BACKGROUND[avatar["background"]])
    canvas.alpha_composite(layer)
    box = [round(v * scale) for v in (left, top)]
    crop = canvas.crop((box[0], box[1], box[0] + SIZE * _SCALE, box[1] + SIZE * _SCALE))
    return np.asarray(crop.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX))
