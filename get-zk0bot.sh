readonly STAMPED_VERSION=""
readonly STAMPED_URL=""
readonly STAMPED_KEY=""
